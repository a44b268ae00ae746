# SPDX-License-Identifier: Apache-2.0
"""Puts lost pins of a program that runs back in their place, beside the start of an agent.

It needs CAP_SYS_ADMIN, which an agent under its unit does not have; the unit runs this before it.
"""

from contextlib import closing
from pathlib import Path

from tidegate.dataplane.kernel import maps
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish.fence import Fence
from tidegate.dataplane.settings import Settings
from tidegate.dataplane.takeover import attached
from tidegate.dataplane.takeover.recovery import Recovery
from tidegate.errors import DataplaneError


def recovery(settings: Settings, folder: Path) -> Recovery:
    """Look at what is attached and pinned.

    Args:
        settings: of the data plane.
        folder: of its pins, locked.
    """
    return Recovery(
        folder,
        settings.own,
        maps.shapes(settings.build.capacity),
        settings.interfaces,
        settings.file,
        is_forced=settings.takes_over,
    )


def repin(settings: Settings) -> int:
    """Put lost pins back, and do nothing else; return how many.

    Raises:
        CapabilityError: no BPF file system, or not allowed.
        DataplaneError: an agent runs, or a program is not certainly ours.
    """
    if not attached.attachments_of(settings.interfaces):
        return 0
    make_plane_folder(settings.pins)
    try:
        with closing(Fence(settings.pins)) as fence:
            found = recovery(settings, fence.folder)
            found.run()
    except OSError as error:
        raise DataplaneError(f"cannot put pins back: {error.strerror}") from error
    return found.put_back
