# SPDX-License-Identifier: Apache-2.0
"""Tables of 64-byte lines, which packets write: connections, SYN marks, fragments.

A line has room for five entries. A key of 64 keyed bits names a pair of neighbouring lines and
which of the two is its home; an entry may be in either, and the home is looked at first. What tells
entries of a pair apart is a fingerprint, the lower 40 bits of the key. A new flow is taken for one
of the at most ten others of its pair with a probability of 10 / 2^40; it then shares that one's
backend, and so it would if it had the same ports.

An entry's owner (fingerprint, backend, its incarnation) is one word of 64 bits in the kernel, and
so cannot be seen half written. What stands beside it, the state, may for a moment be that of an
entry before: it never says where a packet goes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tidegate.model.ticks import AHEAD, TICKS, moments_passed

LINE_ENTRIES: Final = 5
FINGERPRINT: Final = (1 << 40) - 1
_HOME_BIT: Final = 40

ENDING: Final = 1
"""The client has sent FIN or RST."""
SPOKE: Final = 2
"""It has sent more than the packet that made the entry, or its SYN was seen before."""
CONTESTED: Final = 4
"""A SYN found the entry and left a mark: the first packet that follows it takes the place."""
COPIED: Final = 8
"""It came from a table of another size, and nothing of its flow was seen since."""
_FLAG_BITS: Final = 4
_VIP_BITS: Final = 12

LAST_PLACES: Final = 3
"""Places of a pair that a VIP gets only if it has few there."""

SEQUENCE_BITS: Final = 32
MOMENT_BITS: Final = 6
_HANDSHAKE_MOMENTS: Final = 3
"""A mark that is younger, 3 to 6 s, is not overwritten: its handshake may not be complete."""


class Entry(NamedTuple):
    """An entry; `backend` and `incarnation` are an id and the lower 8 bits of which use it is.

    Attributes:
        state: of a connection see `state_of`; of a mark see `mark_state`.
    """

    fingerprint: int
    incarnation: int
    backend: int
    state: int

    @property
    def tick(self) -> int:
        """Return when it last spoke."""
        return self.state >> (_FLAG_BITS + _VIP_BITS)

    @property
    def vip(self) -> int:
        """Return the id of its VIP."""
        return self.state >> _FLAG_BITS & (1 << _VIP_BITS) - 1

    @property
    def flags(self) -> int:
        """Return its flags."""
        return self.state & (1 << _FLAG_BITS) - 1

    @property
    def sequence(self) -> int:
        """Return the sequence number of a mark's SYN."""
        return self.state & (1 << SEQUENCE_BITS) - 1

    @property
    def moment(self) -> int:
        """Return when a mark's SYN came (`Clock.moment`)."""
        return self.state >> SEQUENCE_BITS


def mark_state(sequence: int, moment: int) -> int:
    """Return the state of a mark: 6 bits of moment above 32 of sequence number."""
    return moment << SEQUENCE_BITS | sequence


def state_of(tick: int, vip: int, flags: int) -> int:
    """Return the state of a connection or a fragment: 16 bits of tick, 12 of VIP id, 4 of flags."""
    return tick << (_FLAG_BITS + _VIP_BITS) | vip << _FLAG_BITS | flags


def fingerprint_of(key: int) -> int:
    """Return what an entry keeps of its key; never 0, which is what an empty place has."""
    return key & FINGERPRINT or 1


@dataclass
class Lines:
    """A table.

    Attributes:
        pairs: of lines.
        entries: by place, which is the number of a line times LINE_ENTRIES and a position in it.
    """

    pairs: int
    entries: dict[int, Entry] = field(default_factory=dict)

    def places(self, key: int) -> Iterator[int]:
        """Yield the places that a key's entry may be in, those of its home line first."""
        home = 2 * ((key >> 32) * self.pairs >> 32) + (key >> _HOME_BIT & 1)
        for line in (home, home ^ 1):
            yield from range(LINE_ENTRIES * line, LINE_ENTRIES * (line + 1))

    def find(self, key: int) -> int | None:
        """Return the place of a key's entry."""
        wanted = fingerprint_of(key)
        for place in self.places(key):
            there = self.entries.get(place)
            if there is not None and there.fingerprint == wanted:
                return place
        return None

    def room(self, key: int, tick: int, vip: int) -> int | None:
        """Return the place for a key that has no entry, or None if nobody has to make room.

        An empty place; else that of a flow that is ending; else of one that spoke once. Of several
        the one that has been quiet longest, of equals the first. Silence alone is no reason, or
        whoever sends many packets of no flow could have those forgotten that wait.

        The last places of a pair are shared out: once there are LAST_PLACES or fewer that are not
        the VIP's own and could be had, it gets another one only while it has fewer in the pair than
        those. Else one of its own has to make room. So packets of one VIP take seven places of the
        ten, and those of two VIPs nine.
        """
        there = [(place, self.entries.get(place)) for place in self.places(key)]
        own = [place for place, entry in there if entry is not None and entry.vip == vip]
        claims = {place: 3 * TICKS if e is None else _claim(e, tick) for place, e in there}
        free = sum(claim > 0 and place not in own for place, claim in claims.items())
        if free <= LAST_PLACES and len(own) >= free:
            claims = {place: claims[place] for place in own}
        best = max(claims, key=lambda place: claims[place], default=None)  # of equals the first
        return best if best is not None and claims[best] else None

    def put(self, place: int, key: int, incarnation: int, backend: int, state: int) -> None:
        """Write an entry."""
        self.entries[place] = Entry(fingerprint_of(key), incarnation & 0xFF, backend, state)

    def mark_room(self, key: int, moment: int, *, least: int = 1) -> int | None:
        """Return the place for a new mark, or None if the handshakes of all may be under way.

        An empty place; else that of the oldest mark, of equals the first. There have to be so many
        places to have at `least`.
        """
        best, most, room = None, _HANDSHAKE_MOMENTS - 1, 0
        for place in self.places(key):
            there = self.entries.get(place)
            age = 1 << MOMENT_BITS if there is None else moments_passed(there.moment, moment)
            room += age >= _HANDSHAKE_MOMENTS
            if age > most:
                best, most = place, age
        return best if room >= least else None

    def mark_lot(self, key: int) -> int:
        """Return the place that a key draws by lot."""
        places = list(self.places(key))
        return places[(key & 0xFFFF) * len(places) >> 16]


def _claim(entry: Entry, tick: int) -> int:
    """Return how readily an entry makes room; 0: not at all.

    What another CPU wrote in a tick that has not begun here is younger than what speaks now.
    """
    quiet = (tick + AHEAD - entry.tick) % TICKS
    if entry.flags & ENDING:
        return 2 * TICKS + quiet
    return 0 if entry.flags & SPOKE else TICKS + quiet
