# SPDX-License-Identifier: Apache-2.0
"""What wakes the agent's loop: the latest view of etcd, links, etcd's state, orders, signals.

Threads and signal handlers append to a queue of one, which is atomic and drops what was there, and
write to an eventfd. So a slow loop coalesces what happened meanwhile, and nothing grows.
"""

import os
import queue
import select
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from tidegate.agent.operator.orders import Posted
from tidegate.model.received_writes import merge
from tidegate.model.values import View

_MOST_ORDERS: Final = 16


class WakeReason(Enum):
    """A wake-up without payload."""

    LINKS = auto()
    """A link, neighbour or route changed."""
    ETCD = auto()
    """The connection to etcd changed its state."""
    HEALTH = auto()
    """Health is to be judged anew: this host's findings or the fleet's verdicts changed."""
    JOURNAL = auto()
    """The journal cannot be written, or can be again."""
    RELOAD = auto()
    """SIGHUP."""
    STOP = auto()
    """SIGTERM or SIGINT."""


@dataclass(frozen=True)
class Mail:
    """What has arrived since it was last collected."""

    view: View | None
    reasons: frozenset[WakeReason]
    orders: tuple[Posted, ...] = ()


class Mailbox:
    """One reader, any number of writers."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._view: deque[View] = deque(maxlen=1)
        self._orders: queue.Queue[Posted] = queue.Queue(_MOST_ORDERS)
        self._reasons: dict[WakeReason, deque[None]] = {
            reason: deque(maxlen=1) for reason in WakeReason
        }

    def deliver(self, view: View) -> None:
        """Leave a view in place of one that was not read yet, which leaves its writes to it.

        By one thread at a time.
        """
        with suppress(IndexError):
            missed = self._view.pop()
            view = view._replace(writes=merge(missed.writes, view.writes))
        self._view.append(view)
        self._wake_up()

    def wake(self, reason: WakeReason) -> None:
        """Wake the loop for a reason. May be called in a signal handler."""
        self._reasons[reason].append(None)
        self._wake_up()

    def post(self, order: Posted) -> bool:
        """Leave an operator's order; return False if too many wait."""
        try:
            self._orders.put_nowait(order)
        except queue.Full:
            return False
        self._wake_up()
        return True

    def wait(self, seconds: float) -> None:
        """Return when something arrives, or after so many seconds."""
        self._poll.poll(max(0.0, seconds) * 1000)

    def take(self, reason: WakeReason) -> bool:
        """Return whether the loop was woken for this reason, which is forgotten then."""
        given = bool(self._reasons[reason])
        self._reasons[reason].clear()
        return given

    def collect(self) -> Mail:
        """Take what is there. The wake-up is cleared first, so that none is lost."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        view = None
        with suppress(IndexError):  # it may be taken back, for a newer one, at any moment
            view = self._view.pop()
        given = {reason for reason, queue in self._reasons.items() if queue}
        for reason in given:
            self._reasons[reason].clear()
        orders: list[Posted] = []
        with suppress(queue.Empty):
            while len(orders) < _MOST_ORDERS:
                orders.append(self._orders.get_nowait())
        return Mail(view, frozenset(given), tuple(orders))

    def close(self) -> None:
        """Close the eventfd; nothing may wake it after this."""
        os.close(self._wake)

    def _wake_up(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)
