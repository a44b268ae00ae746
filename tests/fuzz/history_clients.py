# SPDX-License-Identifier: Apache-2.0
"""Clients of a history: what they send, packet by packet, and that the books hear of each."""

import random
from ipaddress import ip_address
from typing import Final

from fuzz.history_books import Books, Flow, Kind
from fuzz.history_frames import frame, new_flow, where_to
from fuzz.history_report import Chronicle, Report
from fuzz.history_roster import Roster
from support.packets.kernel import Kernel

_FLOWS: Final = 600
"""Few enough for the tables, so that nobody makes room for another."""
_LIVELY: Final = 20
"""Flows that send half of the packets, so that handshakes go on within a step."""
_STRAY: Final = 1 << 30, 1 << 31
"""How far from a flow's number that of a SYN is that nobody goes on from."""
_STEP: Final = 1 << 21, 1 << 24
"""How far the numbers of two flows on the same ports are apart (RFC 6528 has them grow)."""


class Clients:
    """All clients of one history."""

    def __init__(
        self, chance: random.Random, kernel: Kernel, roster: Roster, books: Books, report: Report
    ) -> None:
        self._chance = chance
        self._kernel = kernel
        self._roster = roster
        self._books = books
        self._report = report
        self.chronicle = Chronicle(report)
        self.flows = [self._ports(number) for number in range(_FLOWS)]
        self._lively: list[Flow] = []

    def _ports(self, number: int) -> Flow:
        vip = self._chance.choice(list(self._roster.vips.values()))
        prefix = "10.77.1." if vip.network.version == 4 else "fd77::"
        return new_flow(vip, ip_address(f"{prefix}{number % 250 + 1}"), 20000 + number)

    def send(self, most: int) -> None:
        """Send some packets, fewer than so many."""
        for _ in range(self._chance.randrange(most)):
            if self._lively and self._chance.random() < 0.5:
                flow = self._chance.choice(self._lively)
            else:
                flow = self._chance.choice(self.flows)
                self._lively = [*self._lively[1 - _LIVELY :], flow]
            self._speak(flow)

    def _speak(self, flow: Flow) -> None:
        chance = self._chance.random()
        if not flow.is_tcp:
            is_quic = self._roster.vips[flow.vip].quic is not None and chance < 0.4
            self._send(flow, "QUIC" if is_quic else "datagram")
        elif flow.state == "none" or (flow.state == "fin" and chance < 0.7):
            self._begin(flow)
        elif flow.state == "fin":
            self._go_on(flow, "ACK")
        elif flow.state == "syn":
            self._shake_hands(flow, chance)
        else:
            self._talk(flow, chance)

    def _shake_hands(self, flow: Flow, chance: float) -> None:
        if chance < 0.8:
            self._go_on(flow, "ACK")
        elif chance < 0.92:
            self._send(flow, "SYN again", flow.initial)
        else:
            self._begin(flow)

    def _talk(self, flow: Flow, chance: float) -> None:
        if chance < 0.82:
            self._go_on(flow, "data")
        elif chance < 0.9:
            self._go_on(flow, "FIN")
        elif chance < 0.93:
            self._go_on(flow, "RST")
        elif chance < 0.97:
            self._send(flow, "stray SYN", flow.sequence + self._chance.randrange(*_STRAY))
        else:
            self._begin(flow)

    def _begin(self, flow: Flow) -> None:
        flow.initial += self._chance.randrange(*_STEP)
        flow.sequence = flow.initial + 1
        flow.story.clear()
        self._books.begin(flow)
        self._send(flow, "SYN", flow.initial)

    def _go_on(self, flow: Flow, kind: Kind) -> None:
        self._send(flow, kind, flow.sequence)
        flow.sequence += self._chance.randrange(1000)

    def _send(self, flow: Flow, kind: Kind, sequence: int = 0) -> None:
        server = self._chance.choice(self._roster.servers) if kind == "QUIC" else None
        made = frame(flow, kind, sequence, server.server_id if server else b"")
        where = where_to(*self._kernel.run(made))
        self.chronicle.sent(flow, kind, where, self._books.views)
        free = self._books.why_free(flow, kind)
        broken = self._books.judge(flow, kind, where, server)
        report = self._report
        report.packets += 1
        report.kinds[kind] += 1
        if free:
            report.free[free] += 1
        else:
            report.promised += 1
        if broken:
            self.chronicle.tell(flow, broken, self._roster.vips[flow.vip].tracking)
