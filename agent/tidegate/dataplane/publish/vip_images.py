# SPDX-License-Identifier: Apache-2.0
"""The VIPs of one address as packets find them: two images, the one in force, and address bits.

A change goes to the image that is not in force, and one update of four bytes then selects it, so a
packet sees the VIPs of one moment. What a crash leaves in the other image nobody reads, and the
next change writes over it.

A packet may hold an entry of the image that was in force before, from its look-up to its end. So
before that image is written, an RCU grace period must have passed since it was in force: packets
are processed in read-side critical sections. The kernel waits for one in each update of an array of
maps (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c), which pointing a pool's slot to the table
that it has is enough for; a change that swapped tables has had it for nothing. Where no pool has a
table, no packet is forwarded by any entry, and there is nothing to wait for.

The class copies both images, so only places that differ are written, and an audit can tell.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.memory import array_memory
from tidegate.dataplane.publish import vip_places
from tidegate.dataplane.publish.entries import Contents
from tidegate.errors import DataplaneError
from tidegate.model.constants import VIP_PLACES

_FIRST: Final = bytes(4)
_KEY_BYTES: Final = layout.VIP_KEY.itemsize
_VALUE_AT: Final = 24
_VALUE_END: Final = _VALUE_AT + layout.VIP.itemsize

NO_BITS: Final = bytes(layout.ADDRESS_BITS.itemsize)
"""Bits of a data plane without a VIP."""

_Image = npt.NDArray[np.void]


class Held(NamedTuple):
    """The three maps as the kernel has them.

    Attributes:
        images: VIP_PLACE[2, VIP_PLACES].
        selected: the image in force.
        bits: the element of `vip_addresses`.
    """

    images: _Image
    selected: int
    bits: bytes

    @property
    def in_force(self) -> Contents:
        """The VIPs that packets find: values by key."""
        return {key: value for key, _, value in _found(self.images[self.selected])}


def read(fds: Mapping[str, int]) -> Held:
    """Read the maps `vips`, `vip_image` and `vip_addresses`; raise OSError."""
    size = 2 * VIP_PLACES * layout.VIP_PLACE.itemsize
    images = np.frombuffer(array_memory(fds["vips"], size), layout.VIP_PLACE)
    selected = bpf.map_lookup(fds["vip_image"], _FIRST, 4) or _FIRST
    bits = bpf.map_lookup(fds["vip_addresses"], _FIRST, layout.ADDRESS_BITS.itemsize) or NO_BITS
    return Held(
        images.reshape(2, VIP_PLACES),
        int.from_bytes(selected, "little") & 1,  # as packets take it
        bits,
    )


def _found(image: _Image) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield key, place and value of the entries of an image that packets find.

    An entry that is at neither of its places is none; of two of one key the first place's counts.
    """
    taken = {}
    for place in np.flatnonzero(image["key"]["protocol"]).tolist():
        raw = image[place].tobytes()
        key = raw[:_KEY_BYTES]
        of_key = vip_places.places(key)
        if place == of_key.first or (place == of_key.second and key not in taken):
            taken[key] = place, raw[_VALUE_AT:_VALUE_END]
    for key, (place, value) in taken.items():
        yield key, place, value


def _image(entries: Contents, where: Mapping[bytes, int]) -> _Image:
    """Return an image with these entries at these places."""
    image = np.zeros(VIP_PLACES, layout.VIP_PLACE)
    rows = (key.ljust(_VALUE_AT, b"\0") + entries[key] for key in where)
    packed = b"".join(row.ljust(layout.VIP_PLACE.itemsize, b"\0") for row in rows)
    image[list(where.values())] = np.frombuffer(packed, layout.VIP_PLACE)
    return image


def differing(one: _Image, other: _Image) -> npt.NDArray[np.intp]:
    """Return the places at which two images differ."""
    words = [np.ascontiguousarray(i).view("<u8").reshape(len(i), -1) for i in (one, other)]
    return np.flatnonzero((words[0] != words[1]).any(axis=1))


class VipImages:
    """A copy of the three maps, and the ways to change them.

    Attributes:
        in_force: values by key of the image in force.
        selected: which image that is.
        is_settled: whether the other one is certain to have no reader.
    """

    def __init__(self, fds: Mapping[str, int]) -> None:
        self.fds = fds
        self._take(Held(np.zeros((2, VIP_PLACES), layout.VIP_PLACE), 0, NO_BITS))

    def load(self) -> None:
        """Read what the kernel has; raise OSError."""
        self._take(read(self.fds))

    def _take(self, held: Held) -> None:
        self.images = held.images.copy()
        self.selected = held.selected
        self.bits = held.bits
        self.is_settled = False
        self.in_force: Contents = {}
        self._where: dict[bytes, int] = {}
        self._next: dict[bytes, int] = {}
        image = self.images[self.selected]
        for key, place, value in _found(image):
            self.in_force[key], self._where[key] = value, place
        self._is_exact = not len(differing(image, _image(self.in_force, self._where)))

    def check_room(self, wanted: Contents) -> None:
        """Make sure that these VIPs have places.

        Raises:
            DataplaneError: one has not; the text names it.
        """
        if not wanted.keys() <= self._where.keys():
            vip_places.placed(wanted, self._where)

    def has_room(self, wanted: Contents) -> bool:
        """Return whether these VIPs have places."""
        try:
            self.check_room(wanted)
        except DataplaneError:
            return False
        return True

    def holds(self, wanted: Contents) -> bool:
        """Return whether the image in force has exactly these VIPs."""
        return self._is_exact and wanted == self.in_force

    def write(self, wanted: Contents, settle: Callable[[], None]) -> None:
        """Write these VIPs to the image that is not in force; raise as `check_room`, and OSError.

        Args:
            wanted: values by key.
            settle: waits until no packet reads that image; called if one might.
        """
        if not self.is_settled:
            settle()
        self._next = vip_places.placed(wanted, self._where)
        other = 1 - self.selected
        image = _image(wanted, self._next)
        changed = differing(image, self.images[other])
        self.images[other] = image
        self.rewrite(other, changed)

    def select(self, wanted: Contents) -> None:
        """Put in force what was written last, which is these VIPs."""
        self.selected = 1 - self.selected
        self.write_selected()
        self.in_force, self._where, self._is_exact = wanted, self._next, True

    def rewrite(self, image: int, changed: npt.NDArray[np.intp]) -> None:
        """Write places of an image as they are here."""
        keys = (changed + image * VIP_PLACES).astype(np.uint32)
        values = self.images[image][changed]
        bpf.map_update_batch(self.fds["vips"], keys.tobytes(), values.tobytes(), len(keys))

    def write_selected(self) -> None:
        """Write which image is in force."""
        self.is_settled = False
        bpf.map_update(self.fds["vip_image"], _FIRST, struct.pack("<I", self.selected))

    def add_bits(self, bits: bytes) -> None:
        """Set address bits beside those that are set."""
        both = np.frombuffer(bits, "<u8") | np.frombuffer(self.bits, "<u8")
        self.write_bits(both.tobytes())

    def write_bits(self, bits: bytes) -> None:
        """Set these address bits and no others; nothing is written where nothing changes."""
        if bits != self.bits:
            self.bits = bits
            self.rewrite_bits()

    def rewrite_bits(self) -> None:
        """Write the address bits as they are here. A packet sees each bit as it was or as it is."""
        bpf.map_update(self.fds["vip_addresses"], _FIRST, self.bits)
