# SPDX-License-Identifier: Apache-2.0
"""Frames at a device of the lab, as whoever taps it sees them."""

import socket
import threading
from collections import Counter
from collections.abc import Callable
from typing import Self

from tidegate.lab import netns
from tidegate.lab.rack import Lab

_ALL = 0x0003  # ETH_P_ALL


class Tap:
    """Counts what a device of a node receives and sends, by a name for each frame.

    Args:
        lab: with the node.
        node: its name.
        device: of that node.
        kind: gives a frame a name; an empty one leaves it out.
    """

    def __init__(self, lab: Lab, node: str, device: str, kind: Callable[[bytes], str]) -> None:
        self._kind = kind
        self._seen: Counter[str] = Counter()
        self._end = threading.Event()
        with netns.entered(lab.node(node).namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.bind((device, 0))
        self._socket.settimeout(0.05)
        self._thread = threading.Thread(target=self._read, name="tap", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._socket.close()

    def seen(self, name: str) -> int:
        """Return how many frames of this name there were."""
        return self._seen[name]

    def _read(self) -> None:
        while not self._end.is_set():
            try:
                name = self._kind(self._socket.recv(65536))
            except TimeoutError:
                continue
            if name:
                self._seen[name] += 1
