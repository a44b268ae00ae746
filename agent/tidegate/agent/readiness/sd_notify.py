# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3): tells the service manager that the agent is ready, alive, reloading or stopping."""

import os
import socket
import time
from contextlib import suppress
from typing import Final

_PATIENCE: Final = 1.0
"""Seconds for which a manager whose queue is full is waited for."""


class _Channel:
    """A socket that is kept, so that an agent without descriptors is not taken for dead."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def send(self, address: str, text: str) -> None:
        """Send a datagram; raise OSError."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.settimeout(_PATIENCE)
        self._socket.sendto(text.encode(), address)


_CHANNEL: Final = _Channel()


def notify(*assignments: str) -> None:
    """Send assignments such as READY=1; without a service manager, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A manager that went away, or that does not read, must not take the agent with it.
    with suppress(OSError):
        _CHANNEL.send(address, "\n".join(assignments))


def reloading() -> None:
    """Announce a reload; systemd's Type=notify-reload wants the moment with it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval() -> float | None:
    """Return half the seconds between signs of life that the service manager asks for."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 2_000_000 if wanted.isdigit() and int(wanted) > 0 else None
