# SPDX-License-Identifier: Apache-2.0
"""Events for `tidegate events` from an agent that reads the ring buffer itself.

What the agent has read is kept for a moment, as bytes, while a client asks for it, and handed out
over the control socket, each answer with the position at which the next one begins. A client that
is too slow misses the oldest events, and each answer counts those that it missed. No client holds
up the reader.
"""

import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.agent.operator.orders import refused
from tidegate.dataplane.kernel import layout
from tidegate.http_server import Answer, Request

HEAD: Final = struct.Struct("<QQQ")
"""Position behind the last event, events that the client missed, events that the kernel lost."""
LONGEST_WAIT: Final = 2.0
_INTEREST: Final = 15.0
"""Seconds for which events are kept after the last question."""
_MOST_KEPT: Final = 4 << 20
_LONGEST_ANSWER: Final = 1 << 20
"""Bytes that are kept, and of one answer."""


class _Batch(NamedTuple):
    begin: int
    records: npt.NDArray[np.void]


class FlowTap:
    """Keeps and hands out events.

    Args:
        clock: monotonic, s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: deque[_Batch] = deque()
        self._size = 0
        self._end = 0
        self._lost = 0
        self._asked = -_INTEREST
        self._changed = threading.Condition()

    def put(self, records: npt.NDArray[np.void], lost: int) -> None:
        """Add what was read, and how many events the kernel lost in all."""
        with self._changed:
            begin, self._end = self._end, self._end + len(records)
            self._lost = lost
            if self._clock() - self._asked >= _INTEREST:
                self._kept.clear()
                self._size = 0
                return
            if len(records):
                self._kept.append(_Batch(begin, records))
                self._size += records.nbytes
            while self._size > _MOST_KEPT:
                self._size -= self._kept.popleft().records.nbytes
            self._changed.notify_all()

    def answer(self, request: Request) -> Answer:
        """Answer `GET /events?after=N&wait=S`: events from position N on, or else from now on."""
        try:
            after = int(request.query.get("after", -1))
            wait = min(LONGEST_WAIT, max(0.0, float(request.query.get("wait", 0))))
        except ValueError:
            return refused("after and wait are numbers", HTTPStatus.BAD_REQUEST)
        body = self._collect(after, wait)
        return Answer(HTTPStatus.OK, body, "application/octet-stream")

    def _collect(self, after: int, wait: float) -> bytes:
        with self._changed:
            self._asked = self._clock()
            position = self._end if after < 0 else min(after, self._end)
            self._changed.wait_for(lambda: self._end > position, wait if after >= 0 else 0)
            room = _LONGEST_ANSWER // layout.EVENT.itemsize
            found, missed = [], 0
            for begin, records in self._kept:
                rest = records[max(0, position - begin) :][:room]
                if not len(rest):
                    continue
                missed += max(0, begin - position)
                found.append(rest.tobytes())
                position = max(begin, position) + len(rest)
                room -= len(rest)
            if not found:
                missed, position = self._end - position, self._end
            return HEAD.pack(position, missed, self._lost) + b"".join(found)
