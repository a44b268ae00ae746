# SPDX-License-Identifier: Apache-2.0
"""Long-lived TCP and UDP flows through a lab's VIPs, and what a failure did to each of them.

Each flow asks again and again on one connection, or from one port, and every answer names its
backend. TCP requests are larger than a packet, as an upload is, so they meet an MTU hole as well.
"""

import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple, Self

from support.lab.repeated import RepeatedAction
from tidegate.lab import netns
from tidegate.lab.plan import ECHO_PORT, HTTP_PORT
from tidegate.lab.rack import Lab

TICK = 0.05
"""Seconds between two questions of a flow."""
MOST = 96
"""Flows of one kind that are opened until each backend has one."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: flow\r\nX-Fill: %s\r\n\r\n" % (b"x" * 2000)


@dataclass
class Flow:
    """One flow.

    Attributes:
        answers: when each answer came, and from whom.
        asked: when the question that has no answer yet was put; None if there is none.
        end: why it is over; empty while it is not.
    """

    kind: str
    sock: socket.socket
    answers: list[tuple[float, str]] = field(default_factory=list)
    asked: float | None = None
    end: str = ""
    buffer: bytes = b""

    def ask(self) -> None:
        """Put the next question: over TCP when the last one is answered, over UDP always."""
        if self.end or (self.kind == "tcp" and self.asked is not None):
            return
        self.asked = self.asked or time.monotonic()
        try:
            self.sock.send(_REQUEST if self.kind == "tcp" else b"?")
        except OSError as error:
            self.fail(error)

    def receive(self) -> None:
        """Take what has come."""
        try:
            data = self.sock.recv(65536)
        except OSError as error:
            self.fail(error)
            return
        if self.kind == "udp":
            self._answered(data.split()[0])
            return
        self.buffer += data
        if not data:
            self.end = "closed"
        elif (body := self.buffer.partition(b"\r\n\r\n")[2]).endswith(b"\n"):
            self._answered(body.strip())
            self.buffer = b""

    def _answered(self, backend: bytes) -> None:
        self.asked = None
        self.answers.append((time.monotonic(), backend.decode()))

    def fail(self, error: OSError) -> None:
        """End a TCP flow; a datagram that was refused is only lost."""
        if self.kind == "tcp" and not isinstance(error, BlockingIOError):
            self.end = type(error).__name__

    def at(self, moment: float) -> str:
        """Return who answered last before a moment."""
        return next((who for when, who in reversed(self.answers) if when <= moment), "")

    def moves_since(self, moment: float) -> int:
        """Return how often another backend than the one before answered after a moment."""
        homes = [self.at(moment), *(who for when, who in self.answers if when > moment)]
        return sum(one != other for one, other in pairwise(homes))


class Outcome(NamedTuple):
    """What became of the flows of one backend, or of all others.

    Attributes:
        flows: how many there were.
        moved: those that another backend answered.
        broken: those whose connection ended, or that were not answered any more.
        action: seconds from the failure until the last of those that moved was first answered by
            another backend; None if none moved.
    """

    flows: int
    moved: int
    broken: int
    action: float | None

    @property
    def is_untouched(self) -> bool:
        """Whether nothing happened to any of them."""
        return self.flows > 0 and self.moved == 0 and self.broken == 0


class Flows:
    """Flows from a lab's first client to HTTP and echo VIPs; a context manager.

    Args:
        addresses: of the VIPs.
        each: flows per kind and address at the least.
        names: backends that each have a flow of each kind before the body begins.
    """

    def __init__(
        self, lab: Lab, addresses: Iterable[str], names: Iterable[str], *, each: int = 8
    ) -> None:
        self._lab = lab
        self._addresses = tuple(addresses)
        self._names = frozenset(names)
        self._each = each
        self._flows: list[Flow] = []
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.failed_at = 0.0

    def __enter__(self) -> Self:
        for kind in ("tcp", "udp"):
            self._open(kind, self._each)
        self._thread.start()
        self._until("an answer on each flow", lambda: all(f.answers for f in list(self._flows)))
        while missing := self._missing():
            assert len(self._flows) < 2 * MOST, f"no flow of {missing}"
            for kind, _ in missing:
                self._open(kind, 1)
            self._until("answers", lambda: all(f.answers for f in list(self._flows)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for flow in self._flows:
            flow.sock.close()

    def _missing(self) -> set[tuple[str, str]]:
        held = {(flow.kind, flow.answers[-1][1]) for flow in self._flows}
        return {(kind, name) for kind in ("tcp", "udp") for name in self._names} - held

    def _open(self, kind: str, count: int) -> None:
        for address in self._addresses * count:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            port, sort = (
                (HTTP_PORT, socket.SOCK_STREAM) if kind == "tcp" else (ECHO_PORT, socket.SOCK_DGRAM)
            )
            with netns.entered(self._lab.client(1).namespace):
                sock = socket.socket(family, sort)
            sock.settimeout(5)
            sock.connect((address, port))
            sock.setblocking(False)  # noqa: FBT003 - socket has it positional
            self._flows.append(Flow(kind, sock))

    def _run(self) -> None:
        known = 0
        due = time.monotonic()
        while not self._stop.is_set():
            for flow in self._flows[known:]:
                self._selector.register(flow.sock, selectors.EVENT_READ, flow)
                known += 1
            if time.monotonic() >= due:
                due = time.monotonic() + TICK
                for flow in self._flows[:known]:
                    flow.ask()
            for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
                key.data.receive()
                if key.data.end:
                    self._selector.unregister(key.fileobj)

    def _until(self, what: str, holds: Callable[[], bool], timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, f"no {what}: {self._words()}"
            time.sleep(TICK)

    def _words(self) -> Counter[tuple[str, str, str]]:
        return Counter((f.kind, f.at(time.monotonic()), f.end) for f in self._flows)

    def fails_now(self) -> float:
        """Note the moment of the failure."""
        self.failed_at = time.monotonic()
        return self.failed_at

    def homes(self, kind: str, victims: Iterable[str]) -> list[Flow]:
        """Flows of this kind whose backend, when it failed, was one of these."""
        wanted = set(victims)
        return [f for f in self._flows if f.kind == kind and f.at(self.failed_at) in wanted]

    def settle(self, victims: Iterable[str] = ()) -> None:
        """Wait until what did not fail has answered once more, and UDP that did has moved on."""
        now = time.monotonic()
        gone = {id(flow) for flow in self.homes("tcp", victims)}
        watched = [f for f in self._flows if id(f) not in gone]
        self._until(
            "answers after the failure",
            lambda: all(f.end or f.answers[-1][0] > now for f in watched),
        )

    def ended(self, victims: Iterable[str], timeout: float = 3) -> None:
        """Give the TCP flows of failed backends time to learn of it; who waits does not hear."""
        mine = self.homes("tcp", victims)
        deadline = time.monotonic() + timeout
        while not all(flow.end for flow in mine) and time.monotonic() < deadline:
            time.sleep(TICK)

    def moved(self, victims: Iterable[str]) -> None:
        """Wait until another backend answers each UDP flow of those that failed."""
        mine = list(victims)
        self._until(
            "move of the UDP flows",
            lambda: all(f.at(time.monotonic()) not in mine for f in self.homes("udp", mine)),
        )

    def outcome(self, kind: str, victims: Iterable[str], *, others: bool = False) -> Outcome:
        """Return what became of the flows of failed backends, or of all but theirs."""
        theirs = {id(flow) for flow in self.homes(kind, victims)}
        chosen = [f for f in self._flows if f.kind == kind and (id(f) in theirs) != others]
        now = time.monotonic()
        moves: list[float] = []
        broken = 0
        for flow in chosen:
            home = flow.at(self.failed_at)
            after = [when for when, who in flow.answers if when > self.failed_at and who != home]
            moves += after[:1]
            silent = flow.asked is not None and now - flow.asked > 1
            broken += bool(flow.end) or silent
        action = max(moves) - self.failed_at if moves else None
        return Outcome(len(chosen), len(moves), broken, action)


class Newcomers(RepeatedAction):
    """New UDP flows to a lab's IPv4 VIP, one after another: who answers each."""

    def __init__(self, lab: Lab, pause: float = 0.01) -> None:
        super().__init__(pause)
        self._lab = lab
        self.answers: list[tuple[float, str]] = []

    def once(self, number: int) -> bool:  # noqa: ARG002 - all are alike
        """Begin one flow of one datagram."""
        with netns.entered(self._lab.client(1).namespace):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.settimeout(1)
            sock.connect((str(self._lab.vip4()), ECHO_PORT))
            began = time.monotonic()
            try:
                sock.send(b"?")
                self.answers.append((began, sock.recv(100).split()[0].decode()))
            except OSError:
                return False
        return True

    def gone(self, backend: str, count: int = 100, timeout: float = 30) -> float:
        """Wait until a backend has answered none of so many; return when it last did."""
        deadline = time.monotonic() + timeout
        while len(self.answers) < count or backend in {who for _, who in self.answers[-count:]}:
            assert time.monotonic() < deadline, f"{backend} still answers"
            time.sleep(TICK)
        return max((began for began, who in self.answers if who == backend), default=0.0)

    def since(self, moment: float) -> Counter[str]:
        """Return who answered the flows that began after a moment."""
        return Counter(who for began, who in self.answers if began >= moment)
