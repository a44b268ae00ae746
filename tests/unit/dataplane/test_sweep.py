# SPDX-License-Identifier: Apache-2.0
"""What a sweep does to the connection table; without a kernel."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from support.documents.roster import backend, desired, vip
from support.packets.lines import entry, table
from tidegate.dataplane import sweep as module
from tidegate.dataplane.kernel.lines import Lines, owner_of
from tidegate.dataplane.sweep import Changes, Existence, Swept, sweep
from tidegate.model.constants import MAX_VIPS
from tidegate.model.generation import NOTHING, Identity
from tidegate.model.ticks import TICKS, Clock
from tidegate.planner import plan
from tidegate.spec.lines import ENDING, SPOKE

CLOCK = Clock(1000)
WANTED = desired(
    [vip("web", "192.0.2.1"), vip("dns", "192.0.2.1", 53, "udp", udp_idle_timeout=30)],
    [backend("b1"), backend("b2", "10.0.0.2", state="quarantine")],
)
NOW = plan(WANTED, NOTHING, 1000)
WEB, DNS = (NOW.vips[name].identity.id for name in ("web", "dns"))
B1, B2 = (placed.identity.id for _, placed in sorted(NOW.backends.items()))
UDP, TCP = CLOCK.limit(30), CLOCK.limit(4500)
TICK = 5
NOBODY = np.full(MAX_VIPS, TICKS, np.int32)


def swept(
    lines: Lines, *, is_certain: bool = True, oldest: npt.NDArray[np.int32] = NOBODY
) -> Swept:
    """Sweep a table."""
    there = Existence.of(NOW, CLOCK)
    return sweep(lines, there, oldest, TICK, is_certain=is_certain)


def flags(lines: Lines) -> dict[int, int]:
    """Return the flags of each entry by fingerprint."""
    owners, states = lines["owners"].ravel(), lines["states"].ravel()
    return {int(owners[i]) >> 24: int(states[i]) & 15 for i in np.flatnonzero(owners)}


def at(silence: int) -> int:
    """Return the tick of so many before."""
    return (TICK - silence) % TICKS


def test_idle_flows_make_room_first() -> None:
    """Of TCP they get ENDING and keep the rest; of UDP, which nobody follows, they go."""
    lines = table(
        entry(1, WEB, B1, tick=at(TCP), flags=SPOKE),
        entry(2, WEB, B1, tick=at(TCP + 1), flags=SPOKE),
        entry(3, DNS, B1, tick=at(UDP)),
        entry(4, DNS, B1, tick=at(UDP + 1)),
    )
    before = lines.copy()
    assert swept(lines) == (1, 1)
    assert flags(lines) == {1: SPOKE, 2: SPOKE | ENDING, 3: 0}
    assert (lines["states"] >> 4 == before["states"] >> 4).all()
    assert swept(lines) == (0, 0)


def test_entries_of_nobody_are_emptied() -> None:
    """Of a VIP that is not in force, and of a backend or a use of one that does not exist."""
    lines = table(
        entry(1, WEB, B1, tick=TICK),
        entry(2, WEB, B2, tick=TICK),  # in quarantine: it may come back
        entry(3, 99, B1, tick=TICK),
        entry(4, WEB, 999, tick=TICK),
        entry(5, WEB, B1, tick=TICK, incarnation=2),
    )
    uncertain = lines.copy()
    assert swept(lines) == (0, 3)
    assert set(flags(lines)) == {1, 2}
    assert swept(uncertain, is_certain=False) == (0, 0)


def test_a_vip_that_moved_keeps_no_old_entries() -> None:
    """Where its id stays: what spoke well before the change is of the use before."""
    web = replace(NOW.vips["web"], identity=Identity(WEB, 2))
    after = replace(NOW, vips={**NOW.vips, "web": web})
    changes = Changes()
    changes.note(NOTHING, NOW, at(20))
    assert changes.since == {}
    changes.note(NOW, after, at(10))
    lines = table(*(entry(1 + age, WEB, B1, tick=at(age)) for age in range(9, 15)))
    swept(lines, oldest=changes.ages(TICK))
    assert sorted(flags(lines)) == [10, 11, 12, 13]


@pytest.mark.parametrize("size", [1, 7, 1 << 15])
def test_parts_are_as_good_as_the_whole(size: int) -> None:
    """However the lines are divided, each entry is looked at once."""
    entries = [entry(1 + n, (WEB, 99)[n % 2], B1, tick=at(TCP + 1)) for n in range(300)]
    lines = table(*entries)
    found = Swept()
    for first in range(0, len(lines), size):
        there = Existence.of(NOW, CLOCK)
        found = found.more(*sweep(lines, there, NOBODY, TICK, first, size))
    assert found == (150, 150)
    assert set(flags(lines).values()) == {ENDING}


class Meddler:
    """Words of a table in which a packet writes just after an entry was chosen for ENDING."""

    def __init__(self, states: npt.NDArray[np.uint32], write: Callable[[], None]) -> None:
        self.states, self.write = states, write

    def __getitem__(self, at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        found = self.states[at]
        self.write()
        return found

    def __setitem__(self, at: npt.NDArray[np.intp], values: npt.NDArray[np.uint32]) -> None:
        self.states[at] = values

    def take(self, at: npt.NDArray[np.intp]) -> npt.NDArray[np.uint32]:
        """Return words as they were before."""
        return self.states.take(at)


def test_a_place_that_changes_hands_is_left_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that takes the place of an idle one meanwhile does not keep that one's state."""
    old, new = entry(1, WEB, B1, tick=at(TCP + 1)), entry(2, DNS, B1, tick=TICK)
    lines = table(old)

    def taken() -> None:
        lines["states"][0, 0], lines["owners"][0, 0] = new.state, owner_of(new)

    real = module.words

    def meddled(lines: Lines) -> tuple[npt.NDArray[np.uint64], Meddler]:
        owners, states = real(lines)
        return owners, Meddler(states, taken)

    monkeypatch.setattr(module, "words", meddled)
    swept(lines)
    assert flags(lines) == {}


def test_a_flow_that_speaks_meanwhile_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the flag with its old tick, and so its next packet finds silence and revives it."""
    old = entry(1, WEB, B1, tick=at(TCP + 1), flags=SPOKE)
    lines = table(old)

    def spoken() -> None:
        lines["states"][0, 0] = entry(1, WEB, B1, tick=TICK, flags=SPOKE).state

    real = module.words
    monkeypatch.setattr(
        module, "words", lambda lines: (real(lines)[0], Meddler(real(lines)[1], spoken))
    )
    swept(lines)
    assert lines["states"][0, 0] == old.state | ENDING
