# SPDX-License-Identifier: Apache-2.0
"""Datagrams to the lab's echo service, each of which has to be answered."""

import subprocess
import sys

from tidegate.lab.rack import Lab

# Sends numbered datagrams to the echo service until its input ends; prints how many it sent, and
# the numbers of those that were not answered. It runs on the client, so it is a script.
_DATAGRAMS = """
import select, socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
sock.connect((sys.argv[1], 7))
missing, sent, end = set(), 0, None
while end is None or (missing and time.monotonic() < end):
    if end is None:
        sock.send(b"%d" % sent)
        missing.add(sent)
        sent += 1
        if select.select([sys.stdin], [], [], 0)[0]:
            end = time.monotonic() + 5
    while select.select([sock], [], [], 0.005)[0]:
        missing.discard(int(sock.recv(100).split()[-1]))
print(sent, sorted(missing))
"""


class Datagrams:
    """Datagrams from a client of a lab to its IPv4 VIP's echo service, from now to `end`."""

    def __init__(self, lab: Lab) -> None:
        self._process = lab.client(1).popen(
            [sys.executable, "-c", _DATAGRAMS, str(lab.vip4())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def end(self) -> tuple[int, str]:
        """Send no more; return how many were sent, and the numbers of those without an answer."""
        sent, missing = self._process.communicate(timeout=120)[0].decode().split(maxsplit=1)
        return int(sent), missing.strip()
