# SPDX-License-Identifier: Apache-2.0
"""Tables of lines that a test fills entry by entry, in memory or mapped."""

from collections.abc import Iterable

import numpy as np

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel.lines import Lines, owner_of, place_of
from tidegate.spec.lines import Entry, state_of


def entry(
    fingerprint: int, vip: int, backend: int, *, tick: int = 0, flags: int = 0, incarnation: int = 1
) -> Entry:
    """Return an entry of a flow."""
    return Entry(fingerprint, incarnation, backend, state_of(tick, vip, flags))


def fill(lines: Lines, entries: Iterable[Entry], step: int = 7) -> None:
    """Write entries, with room between them."""
    for number, each in enumerate(entries):
        line, at = place_of(step * number)
        lines["states"][line, at] = each.state
        lines["owners"][line, at] = owner_of(each)


def table(*entries: Entry, size: int = 1024) -> Lines:
    """Return a table of so many lines with these entries."""
    lines = np.zeros(size, layout.LINE)
    fill(lines, entries)
    return lines
