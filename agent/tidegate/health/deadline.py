# SPDX-License-Identifier: Apache-2.0
"""The end of a probe, which a loop that was held up does not bring nearer.

A timer that expires says that time has passed, not that nothing has arrived. While the loop did not
run, because of another probe or because the process did not get the CPU, the answer may have come,
and may lie in the socket. So when a timer expires, the descriptor is asked first: what has arrived
beats the clock. And if the timer itself came late, by that much less time was there to proceed in
(to send the request after the handshake, say), so the end is put off by as much, in sum by no more
than the limit once again: the end comes, however slow the loop is.
"""

import asyncio
import select
from typing import Final

_STALL: Final = 0.05
"""Seconds by which a timer is late on a loop that was held up."""
_GRACE: Final = 8
"""Reads of what has arrived that are made when the time is over."""


class Deadline:
    """When one probe ends.

    Args:
        limit: seconds from now.
    """

    def __init__(self, limit: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + limit
        self._spare = limit
        self._grace = _GRACE

    def left(self) -> float:
        """Return the seconds that are left; 0 or less when it is over."""
        return self._at - self._loop.time()

    def check(self) -> None:
        """Take note of a step that needed no waiting.

        Raises:
            TimeoutError: it is over, and so is what may still be taken of what had arrived.
        """
        if self.left() <= 0:
            self._grace -= 1
            if self._grace < 0:
                raise TimeoutError

    async def pause(self, seconds: float) -> None:
        """Let others run for this long, or until it is over."""
        await asyncio.sleep(min(seconds, max(self.left(), 0.0)))

    async def readable(self, fd: int) -> None:
        """Wait until there is something to read.

        Raises:
            TimeoutError: there is nothing, and the time is over.
        """
        await self._wait(fd, select.POLLIN)

    async def writable(self, fd: int) -> None:
        """Wait until a write, or a connect, can go on.

        Raises:
            TimeoutError: it cannot, and the time is over.
        """
        await self._wait(fd, select.POLLOUT)

    async def _wait(self, fd: int, events: int) -> None:
        while not await self._looked(fd, events):
            late = -self.left()
            put_off = min(late, self._spare)
            if late < _STALL or put_off <= 0:
                raise TimeoutError
            self._spare -= put_off
            self._at = self._loop.time() + put_off

    async def _looked(self, fd: int, events: int) -> bool:
        """Return whether a descriptor became ready before the end, or is at the end."""
        woken = self._loop.create_future()
        timer = self._loop.call_at(self._at, _wake, woken)
        reads = events == select.POLLIN
        (self._loop.add_reader if reads else self._loop.add_writer)(fd, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()
            (self._loop.remove_reader if reads else self._loop.remove_writer)(fd)
        poll = select.poll()
        poll.register(fd, events)
        return bool(poll.poll(0))


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
