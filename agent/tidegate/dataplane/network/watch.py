# SPDX-License-Identifier: Apache-2.0
"""A watch on all that decides about next hops: links, addresses, neighbours, routes, rules."""

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_GROUPS: Final = (
    1,  # RTNLGRP_LINK: features of devices too
    3,  # RTNLGRP_NEIGH
    4,  # RTNLGRP_TC: the filter of our probes may go
    5,  # RTNLGRP_IPV4_IFADDR
    7,  # RTNLGRP_IPV4_ROUTE
    8,  # RTNLGRP_IPV4_RULE
    9,  # RTNLGRP_IPV6_IFADDR
    11,  # RTNLGRP_IPV6_ROUTE
    19,  # RTNLGRP_IPV6_RULE
    32,  # RTNLGRP_NEXTHOP: with nexthop_compat_mode=0 a changed object changes no route
)
_SETTLE_MS: Final = 20


class LinkWatch:
    """A watch that calls back on any change of these, from its own thread."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
        self._wake, self._stop = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="links", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and join the thread."""
        self._stop.send(b"x")
        self._thread.join()
        for each in (self._socket, self._wake, self._stop):
            each.close()

    def _run(self) -> None:
        both, only_stop = select.poll(), select.poll()
        both.register(self._socket, select.POLLIN)
        for poller in (both, only_stop):
            poller.register(self._wake, select.POLLIN)
        while self._wake.fileno() not in {fd for fd, _ in both.poll()}:
            # One change comes as several messages; they are handled together.
            if only_stop.poll(_SETTLE_MS):
                return
            self._drain()
            self._changed()

    def _drain(self) -> None:
        # BlockingIOError: no more. ENOBUFS: some were lost, one more reason to read afresh.
        with suppress(OSError):
            while True:
                self._socket.recv(65536, socket.MSG_DONTWAIT)
