# SPDX-License-Identifier: Apache-2.0
"""The books of a history: where each flow is, and whether a packet of it went where it may go.

They know what was sent, what came out, and the documents; nothing of tables, slots, entries and
marks, and nothing of `tidegate.spec`. While a generation is published, two views of the documents
hold, and after a crash three: what a server may do by any of them is allowed, and what it has to do
by all of them is required.

1. A flow of a server that keeps its flows does not move, from its first SYN on.
2. A SYN goes to a server that takes new flows.
3. No packet goes to another pool, an old address, or a server that is gone or out.
4. A packet is forwarded if its server keeps its flows, or if its VIP's pool has a server that takes
   new ones.

A flow may move once (`why_free`), and stays where it then is, each for a reason that
docs/dataplane.md has:

* `silent`: the flow is not in the connection table, and sent nothing for as long as a window lasts:
  TCP of `transition`, and handshakes. Nothing tells it from a flow that began behind the window.
* `idle`: a UDP flow was silent for its VIP's `udp_idle_timeout`, and has ended by that.
* `lost`: the connection table was lost, and by then the pool had changed since the flow began, or a
  window was open then. If only the mark of its SYN was lost, it follows the entry of the flow that
  was on its ports before.
* `handshake`: its VIP changed its pool between SYN and ACK.
* `again`: a SYN that is sent again after the pool has changed. If the first one left no mark, it
  cannot be told from a new flow's.
"""

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from fuzz.history_roster import UDP_IDLE, Roster, Server, View

Kind = Literal["SYN", "SYN again", "stray SYN", "ACK", "data", "FIN", "RST", "datagram", "QUIC"]
_SYNS: Final = ("SYN", "SYN again", "stray SYN")


class Broken(NamedTuple):
    """A promise that a packet broke, and what the books know of it."""

    promise: str
    details: str = ""


@dataclass(eq=False)
class Flow:
    """A client's address and port, a VIP, and what the flow on them is.

    Attributes:
        head: of every frame, up to the ports.
        state: `none`: there is none; `syn`: no packet followed the SYN; `fin`: it was ended.
        home: the server that it is at.
        former: where the flow before it on these ports was.
        spoke_at: second of its last packet.
        changes: of its pool, when it came to its home; -1: while tables were replaced.
        is_firm: no window was open then, and it is the first flow on these ports.
        is_lost: what was known of it was lost, and it has not spoken since.
        initial: sequence number of its SYN.
        sequence: the next one.
        story: its packets, for those who read of a violation.
    """

    vip: str
    head: bytes
    is_tcp: bool
    state: Literal["none", "syn", "open", "fin"] = "none"
    home: Server | None = None
    former: Server | None = None
    spoke_at: int = 0
    changes: int = 0
    is_firm: bool = False
    is_lost: bool = False
    uses: int = 0
    initial: int = 0
    sequence: int = 0
    story: list[tuple[int, str]] = field(default_factory=list)


class Books:
    """What is known of flows, and the verdict on each packet.

    Attributes:
        views: of the documents that hold now, in their order.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self.views: list[View] = []
        self._settled: dict[str, bool] = dict.fromkeys(roster.pools, True)
        self._changed_at: dict[str, int] = dict.fromkeys(roster.pools, roster.now)
        self._seen: dict[str, int] = dict(roster.changes)

    def planned(self) -> None:
        """Take down that a generation is planned, or a flag set: windows open, or are over."""
        for name, pool in self._roster.pools.items():
            if self._roster.changes[name] != self._seen[name]:
                self._settled[name], self._changed_at[name] = False, self._roster.now
            elif self._roster.now >= self._changed_at[name] + pool.transition_window:
                self._settled[name] = True
        self._seen = dict(self._roster.changes)

    def begin(self, flow: Flow) -> None:
        """Take down that a flow's ports are used anew."""
        if flow.state in ("open", "fin"):
            flow.former = flow.home
        flow.home, flow.is_lost, flow.state = None, False, "syn"

    def lose(self, flows: list[Flow], *, entries: bool) -> None:
        """Take down that marks are lost, and entries too or not."""
        for flow in flows:
            flow.is_lost |= entries or flow.state == "syn"

    def why_free(self, flow: Flow, kind: Kind) -> str:
        """Return why a flow may move though its server keeps it; empty if it may not."""
        home = flow.home
        if home is None or kind == "stray SYN":
            return ""
        if flow.is_lost and not self._is_found_by_table(flow, home):
            return "lost"
        silence = self._roster.now - flow.spoke_at
        if not flow.is_tcp:
            return "idle" if silence >= UDP_IDLE else ""
        if kind == "SYN again" and not self._is_unchanged(flow, home):
            return "again"
        if flow.state == "syn" and self._pools(flow) != {home.pool}:
            return "handshake"
        is_long = silence >= self._roster.pools[home.pool].transition_window
        is_partly = self._roster.vips[flow.vip].tracking == "transition"
        return "silent" if is_long and (is_partly or flow.state == "syn") else ""

    def judge(
        self, flow: Flow, kind: Kind, where: bytes | None, server: Server | None = None
    ) -> Broken | None:
        """Take down where a packet went; return the promise that this breaks.

        Args:
            flow: whose packet it is.
            kind: of packet.
            where: the address in the outer header; None if it was not forwarded.
            server: the one whose server id it carries.
        """
        broken = self._judge(flow, kind, where, server)
        if kind not in ("stray SYN", "QUIC"):
            flow.spoke_at, flow.is_lost = self._roster.now, False
        if broken or kind == "RST":
            flow.state, flow.former, flow.home = "none", flow.home or flow.former, None
        elif kind in ("ACK", "data", "FIN") and flow.state != "fin":
            flow.state = "fin" if kind == "FIN" else "open"
        return broken

    def _judge(
        self, flow: Flow, kind: Kind, where: bytes | None, server: Server | None
    ) -> Broken | None:
        if where is None:
            return self._judge_drop(flow, kind)
        found = next((f for v in self.views if (f := v.by_address.get(where))), None)
        if found is None:
            return Broken("it went to an old address, or to a server that is gone or out")
        if server is not None:
            if found is server:
                return None
            if self._all_keep(server) and self._pools(flow) == {server.pool}:
                return Broken("it did not go by its server id", f"that of {server}")
        if kind in _SYNS:
            return self._judge_syn(flow, kind, found)
        return self._judge_other(flow, kind, found)

    def _judge_drop(self, flow: Flow, kind: Kind) -> Broken | None:
        if kind not in _SYNS and flow.home is not None and self._all_keep(flow.home):
            return Broken("it was not forwarded", f"{flow.home} keeps its flows")
        if all(view.pools[flow.vip] in view.serving for view in self.views):
            return Broken("it was not forwarded", "there are servers that take new flows")
        return None

    def _judge_syn(self, flow: Flow, kind: Kind, found: Server) -> Broken | None:
        home = flow.home
        if kind == "SYN again" and found is home:
            return None
        if found.pool not in self._pools(flow):
            return Broken("it went to another pool")
        if not any(view.takes(found) for view in self.views):
            return Broken("a SYN went to a server that takes no new flows")
        if kind == "stray SYN":
            return None
        if home is not None and self._all_keep(home) and not self.why_free(flow, kind):
            return Broken("a SYN that was sent again went elsewhere", f"first to {home}")
        self._settle(flow, found)
        return None

    def _judge_other(self, flow: Flow, kind: Kind, found: Server) -> Broken | None:
        home, free = flow.home, self.why_free(flow, kind)
        if found is home:
            return None
        is_former = free == "lost" and found is flow.former
        if found.pool not in self._pools(flow) and not is_former:
            return Broken("it went to another pool")
        if home is not None and self._all_keep(home) and not free:
            return Broken("it moved", f"it was at {home}, which keeps its flows")
        if not flow.is_tcp and not any(view.takes(found) for view in self.views):
            return Broken("a datagram of a new flow went to a server that takes none")
        self._settle(flow, found)
        return None

    def _settle(self, flow: Flow, found: Server) -> None:
        flow.uses += flow.home is None
        flow.home = found
        # What came while tables were replaced may be of the old ones.
        flow.changes = -1 if self.views[1:] else self._roster.changes[found.pool]
        flow.is_firm = self._settled[found.pool] and flow.uses == 1

    def _is_unchanged(self, flow: Flow, home: Server) -> bool:
        return flow.changes == self._roster.changes[home.pool] and not self.views[1:]

    def _is_found_by_table(self, flow: Flow, home: Server) -> bool:
        is_of_pool = self._pools(flow) == {home.pool}
        return flow.is_firm and is_of_pool and self._is_unchanged(flow, home)

    def _pools(self, flow: Flow) -> set[str]:
        return {view.pools[flow.vip] for view in self.views}

    def _all_keep(self, server: Server) -> bool:
        return all(view.keeps(server) for view in self.views)
