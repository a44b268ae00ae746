# SPDX-License-Identifier: Apache-2.0
"""The fence that keeps a data plane to one agent: a lock on its folder, and the last number.

The lock is on the folder's inode, for as long as the agent lives, stopped or running. Whoever takes
the folder away and makes a new one there has another inode and other maps: an agent that slept
meanwhile holds a lock on nothing, and would pin and attach beside the one that has taken over. So
it looks, before it writes, whether the folder at its path is still the one that it has locked; and
it names its pins by the locked folder's descriptor, so that even what it does a moment too late
goes nowhere. Whoever writes to the same maps without the lock has left a number there that is not
ours.

Whoever takes everything down detaches the program before the pins go. So where the folder is gone
and our program is attached, nobody has done that: pins were deleted, or the file system is gone.
Then a folder is made again, and locked.
"""

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.maps import WIDE_LEDGER_VALUE_BYTES
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish import ledger_bytes
from tidegate.dataplane.publish.ledger import Kind, MetaRecord, Place
from tidegate.errors import CapabilityError, DataplaneError, FenceError


class Fence:
    """The lock on a folder of pins, from opening to `close`."""

    def __init__(self, pins: Path, is_live: Callable[[], bool] = lambda: False) -> None:
        """Take the lock.

        Args:
            pins: the folder.
            is_live: whether our program is still on an interface; asked where the folder is gone.

        Raises:
            DataplaneError: another agent has it.
        """
        self._pins, self._is_live = pins, is_live
        self.lost = ""
        """Why nothing is pinned, and what to do; empty if all is well."""
        self._fd = os.open(pins, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.check()  # it may have been replaced between the two calls
        except BlockingIOError:
            self.close()
            raise DataplaneError(
                f"another agent holds {pins}: stop it, or give this one a pin_dir and interfaces "
                "of its own"
            ) from None  # a lock that is held is no shortage, which a start would wait out
        except FenceError:
            self.close()
            raise

    @property
    def folder(self) -> Path:
        """The locked folder, whatever is at its path now; in one that is gone nothing is pinned."""
        return Path(f"/proc/self/fd/{self._fd}")

    def check(self) -> bool:
        """Make sure that the folder at the path is the locked one, or that nobody took over.

        Where the folder is gone and our program is still attached, nobody has taken anything over:
        the pins were deleted, or the BPF file system is gone. A new folder is made and locked then.

        Returns:
            Whether that has happened, so that everything has to be pinned again.

        Raises:
            FenceError: it was removed with the program, or replaced by another agent.
        """
        ours = os.fstat(self._fd)
        refuse_a_stale_view(self._pins, ours)
        try:
            there = self._pins.stat()
        except (FileNotFoundError, NotADirectoryError):
            if self._is_live():
                return self._make_again()
            raise FenceError(
                f"{self._pins} was removed while this agent ran, and its program detached, so it "
                "writes nothing more; restart the agent to set up a new data plane"
            ) from None
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            self.lost = ""
            return False
        if self._is_live():
            return self._make_again()
        raise self._another()

    def _another(self) -> FenceError:
        return FenceError(
            f"{self._pins} was removed and created again by another agent while this one did "
            "not run, so this agent writes nothing more; stop one of the two"
        )

    def _make_again(self) -> bool:
        """Make and lock a new folder at the path; return whether that was possible."""
        try:
            make_plane_folder(self._pins)
            fd = os.open(self._pins, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (CapabilityError, OSError) as error:
            self.lost = (
                f"{self._pins} is gone and cannot be made again, so nothing is pinned. Packets are "
                f"forwarded, and this agent puts the pins back as soon as it can. {error}"
            )
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (self._pins / "ledger").exists():
                raise self._another()
            os.dup2(fd, self._fd, inheritable=False)  # so that `folder` names the new one
        except BlockingIOError:
            raise self._another() from None
        finally:
            os.close(fd)
        self.lost = ""
        return True

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


def check_number(fds: Mapping[str, int], ours: MetaRecord) -> None:
    """Make sure that the last number in the ledger is not above ours.

    One that is below, away or unreadable is damage, not another agent: numbers only grow. The audit
    repairs that.

    Raises:
        FenceError: another agent has published.
    """
    name, key = ledger_bytes.where(Place(Kind.META, 0))
    value = bpf.map_lookup(fds[name], key, WIDE_LEDGER_VALUE_BYTES)
    found = ledger_bytes.decoded({key: value}, strict=False) if value is not None else {}
    for meta in found.values():
        if isinstance(meta, MetaRecord) and (meta.number, meta.attempt) > (
            ours.number,
            ours.attempt,
        ):
            raise FenceError(
                f"generation {max(meta.number, meta.attempt)} is in the kernel and this agent's "
                f"last one is {ours.number}: another agent publishes to the same maps, so this "
                "one writes nothing more; stop one of the two"
            )


def refuse_a_stale_view(pins: Path, ours: os.stat_result) -> None:
    """Make sure that the locked folder is not gone where this process alone still sees it.

    A unit's view of the BPF file system is made at the start: a folder that somebody removes stays
    at its path there, and nothing can be pinned in it any more. A new process has a new view.

    Raises:
        FenceError: it is gone.
    """
    if not ours.st_nlink and pins.exists() and os.path.samestat(ours, pins.stat()):
        raise FenceError(
            f"{pins} was removed outside of this agent's view of it, so it can pin nothing more; "
            "its next start makes the folder anew"
        )
