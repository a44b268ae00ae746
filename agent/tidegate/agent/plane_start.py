# SPDX-License-Identifier: Apache-2.0
"""Opens the data plane at the agent's start, again and again where the host cannot do it now.

A host that is short of memory, of processes or of file descriptors is so for a while. An agent that
ended for it would wait for a person to start it. This one says what is lacking and tries again;
meanwhile what is pinned forwards. Any other failure would be the same a moment later: the agent
ends with its reason.
"""

import errno
import subprocess
import time
from collections.abc import Iterator
from typing import Final

from tidegate.agent.readiness import sd_notify
from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.publish.steps import Reached
from tidegate.dataplane.settings import Settings
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""s"""
_LONGEST_ATTEMPT: Final = 300.0
"""Seconds that the service manager is asked to wait for an attempt; each compilation has 60, and
tables of 65,535 backends are read from the maps."""
_PATIENCE: Final = f"EXTEND_TIMEOUT_USEC={int(_LONGEST_ATTEMPT * 1e6)}"
_PASSING: Final = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
    }
)


def open_plane(settings: Settings, reached: Reached) -> DataPlane:
    """Open the data plane; wait for as long as the host is short of something.

    Raises:
        CapabilityError, DataplaneError: it cannot be opened, and not a moment later either.
    """
    pause = FIRST_PAUSE
    while True:
        sd_notify.notify(_PATIENCE)
        try:
            return DataPlane(settings, reached)
        except (DataplaneError, OSError) as error:
            if not is_passing(error):
                raise
            _say(error, pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def is_passing(error: BaseException) -> bool:
    """Return whether what failed may succeed a moment later without anybody's doing."""
    return any(
        isinstance(each, (MemoryError, subprocess.TimeoutExpired))
        or (isinstance(each, OSError) and each.errno in _PASSING)
        for each in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _say(error: Exception, pause: float) -> None:
    """Report it to the log, and to a service manager, which would not wait for so long else."""
    log.warning("start_postponed", reason=error, retry_seconds=pause)
    sentence = str(error).partition("\n")[0]
    sd_notify.notify(
        f"STATUS=cannot start yet, trying again: {sentence}",
        f"EXTEND_TIMEOUT_USEC={int((pause + _LONGEST_ATTEMPT) * 1e6)}",
    )
