# SPDX-License-Identifier: Apache-2.0
"""Make a pool's next table from the one in force: windows open, last, and close.

A slot's fallback is the owner that it had when its window opened, however often it changed since.
Its window closes a set time after its last change; then the fallback becomes the current owner.
The mark that the slot may have tracked flows is set with the window and never taken off: flows that
were tracked in it may live for as long as they like.

A slot whose owner was out, by health or a document, counts as changed, also if the same owner is in
again before any table did without it: others stood in for it, and flows that began there or went
there have marks and entries, for which nobody would look in a slot that never changed. It may have
tracked flows even where windows are of no length.

The table has room for 255 windows. Under a storm of changes the oldest ones are merged: the merged
window opens with the earlier and closes with the later of the two. Both directions are safe. A
later close keeps untracked flows with their old owner for longer. An earlier opening lets an older
mark of the SYN table count, which only a flow whose handshake took longer than a window has.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from tidegate.model.generation import CLOSED, WINDOWS, Slots, Table, Window, WindowIndex


def first_table(current: Slots, generation: int) -> Table:
    """Return the table of a pool that had none: no flow is older than it, so no window is open."""
    window = np.zeros(len(current), np.uint8)
    tracked = np.zeros(len(current), bool)
    return _frozen(Table(generation, current, current.copy(), window, tracked))


def next_table(
    before: Table,
    current: Slots,
    generation: int,
    now: int,
    seconds: int,
    living: Collection[int],
    out: Collection[int] = (),
) -> Table:
    """Return the table that follows `before` when its current owners become `current`.

    Args:
        before: the table in force.
        current: uint32[n], the owners from now on.
        generation: number of the generation that the new table belongs to.
        now: wall clock, s.
        seconds: length of a window after a slot's last change.
        living: ids that have a backend; a fallback owner without one is replaced by the current.
        out: ids of backends that are out, or were while `before` was in force.

    Returns:
        The next table, or `before` itself if nothing differs.
    """
    if current is before.current and len(before.windows) == 1 and not out:
        return before  # no slot has a fallback, so nothing can differ
    changed = current != before.current
    was_out = np.isin(before.current, np.fromiter(out, np.uint32, len(out)))
    changed |= was_out
    is_open = np.array([w.closes_at > now for w in before.windows], bool)
    in_window = is_open[before.window]

    fallback = np.where(in_window, before.fallback, before.current)
    known = np.zeros(int(max(fallback.max(), max(living, default=0))) + 1, bool)
    known[np.fromiter(living, np.int64, len(living))] = True
    in_window |= changed & (seconds > 0)

    # Which window each slot is in now: the one it had, that one prolonged, or a new one.
    windows: dict[Window, int] = {CLOSED: 0}
    kept, prolonged = np.zeros(WINDOWS, np.uint16), np.zeros(WINDOWS, np.uint16)
    fresh = Window(generation, now + seconds)
    for index in np.unique(before.window[in_window]):
        old = before.windows[index] if is_open[index] else CLOSED
        longer = Window(old.opened, max(old.closes_at, fresh.closes_at)) if old.opened else fresh
        slots = in_window & (before.window == index)
        if (slots & ~changed).any():
            kept[index] = windows.setdefault(old, len(windows))
        if (slots & changed).any():
            prolonged[index] = windows.setdefault(longer, len(windows))
    window = np.where(changed, prolonged[before.window], kept[before.window])
    window[~in_window] = 0
    fallback = np.where(in_window & known[fallback], fallback, current)

    merged, places = _merged(list(windows))
    tracked = before.tracked | in_window | was_out
    table = Table(generation, current, fallback, places[window], tracked, tuple(merged))
    return before if _same(before, table) else _frozen(table)


def _merged(windows: list[Window]) -> tuple[list[Window], WindowIndex]:
    """Merge windows to at most WINDOWS, and return the new index of each (uint8)."""
    places = np.zeros(len(windows), np.uint8)
    merged = [CLOSED]
    surplus = len(windows) - WINDOWS
    for old_place, window in sorted(enumerate(windows[1:], start=1), key=lambda pair: pair[1]):
        if surplus > 0 and len(merged) > 1:
            last = merged[-1]
            merged[-1] = Window(last.opened, max(last.closes_at, window.closes_at))
            surplus -= 1
        else:
            merged.append(window)
        places[old_place] = len(merged) - 1
    return merged, places


def _same(a: Table, b: Table) -> bool:
    """Say whether two tables have equal owners, fallbacks, marks and windows of each slot."""
    return (
        np.array_equal(a.current, b.current)
        and np.array_equal(a.fallback, b.fallback)
        and np.array_equal(a.tracked, b.tracked)
        and np.array_equal(_by_slot(a), _by_slot(b))
    )


def _by_slot(table: Table) -> npt.NDArray[np.int64]:
    return np.array(table.windows, np.int64)[table.window]


def _frozen(table: Table) -> Table:
    for array in (table.current, table.fallback, table.window, table.tracked):
        array.flags.writeable = False
    return table
