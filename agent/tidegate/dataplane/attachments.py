# SPDX-License-Identifier: Apache-2.0
"""Who is attached to the interfaces: noticed within half a second, also if it is nobody of ours.

Programs come and go without a word: only some ways to attach one send a message. A foreign program
in our place is left alone, as somebody put it there; the interface counts as not forwarding until
it is gone.
"""

from collections.abc import Callable, Sequence

from tidegate.dataplane.kernel import programs
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog

log = EventLog(__name__)


class Attachments:
    """What is attached to some interfaces.

    Args:
        interfaces: their names.
        is_whole: whether all else that belongs on an interface is there.

    Attributes:
        foreign: by interface, which program is there instead of ours, as a sentence.
    """

    def __init__(
        self, interfaces: Sequence[str], is_whole: Callable[[str], bool] = lambda _name: True
    ) -> None:
        self._interfaces = interfaces
        self._is_whole = is_whole
        self._last: dict[str, int] = {}
        self.foreign: dict[str, str] = {}

    def differ(self) -> bool:
        """Return whether other programs are attached than when this was last asked, or too few."""
        before, self._last = self._last, {name: _program(name) for name in self._interfaces}
        return self._last != before or not all(map(self._is_whole, self._interfaces))

    def note_foreign(self, interface: str, there: programs.Attachment) -> None:
        """Take note that a foreign program is there."""
        reason = foreign_program(interface, there)
        if self.foreign.get(interface) != reason:
            log.error(
                "foreign_program", interface=interface, program=there.program_id, reason=reason
            )
        self.foreign[interface] = reason


def foreign_program(interface: str, there: programs.Attachment) -> str:
    """Return what to do about a program that is not ours."""
    return (
        f"{interface} has an XDP program that is not Tidegate's (id {there.program_id}), and "
        "forwards nothing: if it is not needed, detach it with "
        f"{programs.off_command(interface, there.mode)}"
    )


def _program(interface: str) -> int:
    """Return the id of the program on an interface; 0: none, or the interface is away."""
    try:
        there = programs.attached(interface)
    except DataplaneError:
        return 0
    return there.program_id if there else 0
