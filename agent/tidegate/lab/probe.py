# SPDX-License-Identifier: Apache-2.0
"""Sees when new flows change their backend: `python -m tidegate.lab.probe ADDRESS PORT`.

It sends a UDP datagram every millisecond, each from a port of its own, so that each is a new flow.
The echo server names the backend. Whenever the backend changes, one line says when the last
datagram that went to the old one and the first that went to the new one were sent. It ends with
standard input, or after a minute. Times are CLOCK_MONOTONIC seconds.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

INTERVAL: Final = 0.001
FIRST_PORT: Final = 2000
_KEEP: Final = 400
"""Sockets that stay open for a late answer: 0.4 seconds' worth."""
_LIMIT_SECONDS: Final = 60.0


@dataclass
class Probe:
    """The sockets in flight and what they have shown."""

    address: str
    port: int
    poll: "select.poll" = field(default_factory=select.poll)
    flying: dict[int, tuple[socket.socket, float]] = field(default_factory=dict)
    order: deque[int] = field(default_factory=deque)
    backend: str = ""
    last_sent: float = 0.0
    next_port: int = FIRST_PORT
    sent: int = 0
    answered: int = 0

    def send(self) -> None:
        """Send one datagram from a new socket."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        # A port is never used twice: the balancer may still know its flow.
        sock.bind(("", self.next_port))
        self.next_port += 1
        sock.setblocking(False)  # noqa: FBT003 - socket has it positional
        sock.connect((self.address, self.port))
        self.poll.register(sock, select.POLLIN)
        self.flying[sock.fileno()] = (sock, time.monotonic())
        self.order.append(sock.fileno())
        self.sent += 1
        sock.send(b"?")
        if len(self.order) > _KEEP:
            self._close(self.order.popleft())

    def receive(self, seconds: float) -> bool:
        """Handle answers for this long; return False when standard input has ended."""
        for fd, _ in self.poll.poll(max(0.0, seconds) * 1000):
            if fd == sys.stdin.fileno():
                return False
            sock, sent = self.flying[fd]
            try:
                backend = sock.recv(100).decode().partition(" ")[0]
            except OSError:
                backend = ""  # an ICMP error: no answer
            if backend:
                self._answer(backend, sent)
            self.poll.unregister(fd)
        return True

    def _answer(self, backend: str, sent: float) -> None:
        self.answered += 1
        if backend != self.backend and sent > self.last_sent:
            say("switch", old=self.backend, new=backend, last_old=self.last_sent, first_new=sent)
            self.backend = backend
        if backend == self.backend:
            self.last_sent = max(self.last_sent, sent)

    def _close(self, fd: int) -> None:
        sock, _ = self.flying.pop(fd)
        with suppress(KeyError):  # it was answered
            self.poll.unregister(fd)
        sock.close()


def say(event: str, **values: str | float) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run until standard input ends."""
    probe = Probe(sys.argv[1], int(sys.argv[2]))
    probe.poll.register(sys.stdin, select.POLLIN)
    begin = time.monotonic()
    while time.monotonic() - begin < _LIMIT_SECONDS:
        probe.send()
        # Late is late: skipped datagrams are not sent in a burst.
        due = time.monotonic() + INTERVAL
        while (left := due - time.monotonic()) > 0:
            if not probe.receive(left):
                say("end", sent=probe.sent, answered=probe.answered)
                return
    say("end", sent=probe.sent, answered=probe.answered)


if __name__ == "__main__":
    main()
