# SPDX-License-Identifier: Apache-2.0
"""Commands for ExaBGP's process API, written to a named pipe: `announce route X next-hop self`.

All routes are written at each call, since a reader that was restarted knows nothing; ExaBGP ignores
a route that it has already. The pipe never makes the agent wait: what does not fit is written at
the next call.

ExaBGP has to be set up not to acknowledge commands (docs/announce.md): it writes to a process that
reads nothing, and once that pipe is full it waits for ever.
"""

import errno
import os
import select
import stat
from contextlib import suppress
from pathlib import Path

from tidegate.event_log import EventLog
from tidegate.model.values import Network

log = EventLog(__name__)


class ExaBgpPipe:
    """A named pipe; it is made if it is not there."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._fd = -1
        self._announced: set[Network] = set()
        self.problem = ""
        """Why nothing can be written; empty if it can."""

    def keep(self, wanted: frozenset[Network]) -> None:
        """Withdraw what was announced and is not wanted, and announce what is."""
        gone = [network for network in sorted(self._announced, key=str) if network not in wanted]
        lines = [(network, f"withdraw route {network} next-hop self\n") for network in gone]
        # What was not announced yet comes first, lest it be what does not fit each time.
        order = sorted(wanted, key=lambda network: (network in self._announced, str(network)))
        lines += [(network, f"announce route {network} next-hop self\n") for network in order]
        try:
            self._open()
            for network, line in lines:
                os.write(self._fd, line.encode())  # shorter than PIPE_BUF: whole or not at all
                if network in wanted:
                    self._announced.add(network)
                else:
                    self._announced.discard(network)
            self.problem = ""
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                self._close()
            fresh = f"announce.exabgp_pipe {self._path}: {error.strerror}; is ExaBGP running?"
            if fresh != self.problem:
                log.warning("exabgp_pipe", reason=fresh)
            self.problem = fresh

    def has_lost_reader(self) -> bool:
        """Return whether the reader is gone, with no other; false if there never was a reader."""
        if self._fd < 0:
            return False
        poller = select.poll()
        poller.register(self._fd, 0)
        return bool(poller.poll(0))

    def _open(self) -> None:
        if self._fd >= 0:
            return
        with suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)
        # Without a reader this fails at once, in place of waiting for one.
        fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not a named pipe")
        self._fd = fd

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
