# SPDX-License-Identifier: Apache-2.0
"""What wakes the agent's loop: the latest snapshot, changed links, and signals.

Threads and signal handlers only set a field and write to an eventfd, which is safe in a handler.
Of snapshots the latest alone is kept, so a slow loop coalesces events and never queues them.
"""

import os
import select
from contextlib import suppress
from dataclasses import dataclass

from tidegate.model.values import Snapshot


@dataclass(frozen=True)
class Mail:
    """What has arrived since the last look."""

    snapshot: Snapshot | None
    links: bool
    reload: bool
    stop: bool
    state: bool


class Mailbox:
    """One reader, any number of writers."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._snapshot: Snapshot | None = None
        self._links = self._reload = self._stop = self._state = False

    def deliver(self, snapshot: Snapshot) -> None:
        """A new snapshot replaces one that was not read yet."""
        self._snapshot = snapshot
        self._ring()

    def links_changed(self) -> None:
        """A link, neighbour or route changed."""
        self._links = True
        self._ring()

    def state_changed(self) -> None:
        """The connection to etcd changed its state."""
        self._state = True
        self._ring()

    def reload(self) -> None:
        """SIGHUP."""
        self._reload = True
        self._ring()

    def stop(self) -> None:
        """SIGTERM or SIGINT."""
        self._stop = True
        self._ring()

    def wait(self, seconds: float) -> None:
        """Returns when something arrives, or after this long."""
        self._poll.poll(max(0, seconds) * 1000)

    def collect(self) -> Mail:
        """Takes what is there. The bell is silenced first, so that nothing is overheard."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        snapshot, self._snapshot = self._snapshot, None
        links, self._links = self._links, False
        reload, self._reload = self._reload, False
        state, self._state = self._state, False
        return Mail(snapshot, links, reload, self._stop, state)

    def close(self) -> None:
        """Closes the eventfd; nothing may ring after this."""
        os.close(self._wake)

    def _ring(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self._wake, 1)
