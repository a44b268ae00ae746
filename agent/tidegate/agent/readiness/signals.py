# SPDX-License-Identifier: Apache-2.0
"""Shows readiness outside the agent: a file that is there while it is ready, systemd, the log.

The file is made anew under a name beside it and then renamed, so whatever stands at its path (a
link, a pipe, a file of somebody else's) is replaced, and neither followed nor written to.
"""

import logging
import os
from pathlib import Path

from tidegate.agent.readiness import sd_notify
from tidegate.event_log import EventLog

log = EventLog(__name__)


class ReadySignals:
    """Changes what is shown when readiness or the generation changes.

    Args:
        file: absolute path; empty shows no file.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None
        self._shown: tuple[str, int] | None = None
        self.problem = ""
        """Why the file cannot be written; empty if it can."""

    def withdraw(self) -> None:
        """Take the file away, on another thread than the loop's; its next turn shows all again."""
        self._shown = None
        self._write("The agent hangs.", 0)

    def show(self, unready: str, generation: int) -> None:
        """Show it, unless it is shown already; try a file again that could not be written."""
        before, self._shown = self._shown, (unready, generation)
        if before == self._shown and not self.problem:
            return
        if before is None or before[0] != unready:
            level = logging.WARNING if unready else logging.INFO
            log.log(level, "readiness", ready=not unready, reason=unready)
        sd_notify.notify(f"STATUS=generation {generation}, {unready or 'ready'}")
        self._write(unready, generation)

    def _write(self, unready: str, generation: int) -> None:
        if self._file is None:
            return
        try:
            if unready:
                self._file.unlink(missing_ok=True)
            else:
                _replace(self._file, f"generation {generation}\n")
            self.problem = ""
        except OSError as error:
            self.problem = f"ready_file {self._file}: {error.strerror}"
            log.warning("ready_file", reason=self.problem)


def _replace(path: Path, text: str) -> None:
    """Put a new file at a path; leave nothing beside it if that fails.

    Raises:
        OSError: it cannot be made there.
    """
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.unlink(missing_ok=True)  # of an agent that was killed meanwhile
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(fd, "w") as opened:
            opened.write(text)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
