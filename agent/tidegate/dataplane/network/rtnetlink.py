# SPDX-License-Identifier: Apache-2.0
"""Questions to the kernel's routing and neighbour tables, many at a time (rtnetlink(7)).

Not pyroute2, which takes as long for one answer as the kernel for a hundred, and which reads whole
tables where one entry is asked for: a host that speaks BGP may have a million routes.
"""

import errno
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final, NamedTuple, Self

from tidegate.errors import DataplaneError
from tidegate.model.values import Address

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")  # struct ndmsg
_ATTRIBUTE: Final = struct.Struct("=HH")
_ROUTE_HOP: Final = 8  # bytes of struct rtnexthop, whose attributes follow
_FILTER: Final = struct.Struct("=BxxxiIII")  # struct tcmsg: family, device, handle, parent, info
_NLMSG_ERROR, _NLMSG_DONE, _NEW_NEIGH, _GET_NEIGH, _GET_ROUTE = 2, 3, 28, 30, 26
_NEW_FILTER, _GET_FILTER = 44, 46
_REQUEST, _ACK, _REPLACE, _DUMP, _CREATE = 0x1, 0x4, 0x100, 0x300, 0x400
_TCA_OPTIONS, _BPF_FLAGS, _BPF_FLAGS_GEN, _BPF_ID = 2, 8, 9, 11
_DIRECT, _SKIP_SW = 1, 2  # TCA_BPF_FLAG_ACT_DIRECT, TCA_CLS_FLAGS_SKIP_SW
_DST, _OIF, _GATEWAY, _MULTIPATH, _TABLE, _VIA, _NH_ID = 1, 4, 5, 9, 15, 18, 30  # RTA_*
_LOOKUP_TABLE: Final = 0x1000  # RTM_F_LOOKUP_TABLE
_FIB_MATCH: Final = 0x2000  # RTM_F_FIB_MATCH
_UNICAST: Final = 1  # RTN_UNICAST
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_USE: Final = 1
_NUD_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # a MAC that the stack itself would use
_NUD_FRESH: Final = 0x02 | 0x40 | 0x80  # reachable, noarp, permanent
_AT_ONCE: Final = 16
"""Questions before their answers are read: these fit into any receive buffer."""
_PATIENCE: Final = 5.0
"""Seconds; the kernel answers within the call that asks."""


class Reply(NamedTuple):
    """An answer: the body of a message, or why there is none.

    Attributes:
        refusal: an errno; 0 for none.
    """

    body: bytes
    refusal: int = 0


class Neighbour(NamedTuple):
    """What the neighbour table has of a next hop.

    Attributes:
        mac: None while it is not resolved.
        is_fresh: whether the kernel is sure of it.
    """

    mac: bytes | None
    is_fresh: bool


class Filter(NamedTuple):
    """A tc filter.

    Attributes:
        place: handle, and priority and protocol as the kernel joins them.
        program: id of its BPF program; 0 for a filter of another kind.
        decides: whether the program's answer is the verdict, and the kernel runs it (not the NIC).
    """

    place: tuple[int, int]
    program: int
    decides: bool


class RouteSocket:
    """A connection to the kernel's tables of the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(_PATIENCE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next_hops(
        self, destinations: Sequence[Address], device: int
    ) -> dict[Address, Address | None]:
        """Return what `ip route get DESTINATION oif DEVICE` says for each.

        Returns:
            The next hop, of either family; the destination itself where it is on the link; None
            where no route leads out of the device.

        Raises:
            DataplaneError: the kernel does not answer.
        """
        asked = [_route_request(each, device, _lookup_flags(each)) for each in destinations]
        replies = self._ask(asked, _GET_ROUTE, _REQUEST)
        return {
            destination: _hop(reply, destination, device)
            for destination, reply in zip(destinations, replies, strict=True)
        }

    def paths(self, destinations: Sequence[Address], device: int) -> list[bytes]:
        """Return for each its route's nexthop object or multipath: equal bytes are one set of hops.

        Empty where its route has neither.

        Raises:
            DataplaneError: the kernel does not answer.
        """
        asked = [_route_request(each, device, _FIB_MATCH) for each in destinations]
        found = []
        for reply in self._ask(asked, _GET_ROUTE, _REQUEST):
            parts = {} if reply.refusal else _attributes(reply.body[_ROUTE.size :])
            found.append(parts.get(_NH_ID) or _sorted_hops(parts.get(_MULTIPATH, b"")))
        return found

    def neighbours(self, hops: Sequence[Address], device: int) -> list[Neighbour]:
        """Return the MAC of each next hop, and have the kernel probe for those it is not sure of.

        Raises:
            DataplaneError: the kernel does not answer.
        """
        asked = [_neighbour_request(each, device, 0) for each in hops]
        found = [_neighbour(reply) for reply in self._ask(asked, _GET_NEIGH, _REQUEST)]
        probed = [
            _neighbour_request(hop, device, _NTF_USE)
            for hop, each in zip(hops, found, strict=True)
            if not each.is_fresh
        ]
        # A refusal is no fault: the link may be down, and its coming up wakes us.
        self._ask(probed, _NEW_NEIGH, _REQUEST | _ACK | _CREATE | _REPLACE)
        return found

    def filters(self, device: int, parent: int) -> list[Filter]:
        """Return the tc filters of a device at this parent; none where it has no such parent.

        Raises:
            DataplaneError: the kernel does not answer.
        """
        self._sequence += 1
        body = _FILTER.pack(0, device, 0, parent, 0)
        head = _HEADER.pack(
            _HEADER.size + len(body), _GET_FILTER, _REQUEST | _DUMP, self._sequence, 0
        )
        found: list[Filter] = []
        try:
            self._socket.send(head + body)
            while True:
                for kind, sequence, each in _messages(self._socket.recv(65536)):
                    if sequence == self._sequence and kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                        return found
                    if sequence == self._sequence and kind == _NEW_FILTER:
                        found.append(_filter(each))
        except OSError as error:
            raise DataplaneError(f"the kernel's filters cannot be read: {error}") from error

    def _ask(self, bodies: Sequence[bytes], kind: int, flags: int) -> list[Reply]:
        replies: list[Reply] = []
        for at in range(0, len(bodies), _AT_ONCE):
            batch = bodies[at : at + _AT_ONCE]
            first = self._sequence + 1
            self._sequence += len(batch)
            sent = b"".join(
                _HEADER.pack(_HEADER.size + len(body), kind, flags, first + i, 0) + body
                for i, body in enumerate(batch)
            )
            try:
                self._socket.send(sent)
                found = self._answers(range(first, first + len(batch)))
            except OSError as error:
                raise DataplaneError(f"the kernel's routes cannot be read: {error}") from error
            replies += [found[first + i] for i in range(len(batch))]
        return replies

    def _answers(self, wanted: range) -> dict[int, Reply]:
        found: dict[int, Reply] = {}
        while len(found) < len(wanted):
            for kind, sequence, body in _messages(self._socket.recv(65536)):
                if sequence in wanted:
                    found[sequence] = _reply(kind, body)
        return found


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Give kind, sequence number and body of each message."""
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        yield kind, sequence, data[_HEADER.size : length]
        data = data[(max(length, _HEADER.size) + 3) & ~3 :]


def _filter(body: bytes) -> Filter:
    _, _, handle, _, info = _FILTER.unpack_from(body)
    options = _attributes(_attributes(body[_FILTER.size :]).get(_TCA_OPTIONS, b""))

    def word(kind: int) -> int:
        return int.from_bytes(options.get(kind, b"")[:4], sys.byteorder)

    decides = bool(word(_BPF_FLAGS) & _DIRECT) and not word(_BPF_FLAGS_GEN) & _SKIP_SW
    return Filter((handle, info), word(_BPF_ID), decides)


def _reply(kind: int, body: bytes) -> Reply:
    if kind == _NLMSG_ERROR:
        return Reply(b"", -struct.unpack_from("=i", body)[0])
    return Reply(body)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6  # noqa: PLR2004 - a family


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value  # all are multiples of 4


def _attributes(data: bytes) -> Mapping[int, bytes]:
    return dict(_split(data))


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _sorted_hops(data: bytes) -> bytes:
    """Return a multipath's next hops in one order: IPv6 begins with the one that it chose."""
    found = []
    while len(data) >= _ROUTE_HOP:
        length = (int.from_bytes(data[:2], sys.byteorder) + 3) & ~3
        found.append(data[:length])
        data = data[max(length, _ROUTE_HOP) :]
    return b"".join(sorted(found))


def _route_request(destination: Address, device: int, flags: int) -> bytes:
    head = _ROUTE.pack(_family(destination), destination.max_prefixlen, 0, 0, 0, 0, 0, 0, flags)
    oif = _attribute(_OIF, struct.pack("=I", device))
    return head + _attribute(_DST, destination.packed) + oif


def _lookup_flags(destination: Address) -> int:
    # IPv6 answers with the table always, and refuses the flag.
    return _LOOKUP_TABLE if destination.version == 4 else 0  # noqa: PLR2004 - a family


def _hop(reply: Reply, destination: Address, device: int) -> Address | None:
    if reply.refusal or len(reply.body) < _ROUTE.size or reply.body[7] != _UNICAST:
        return None
    found = _attributes(reply.body[_ROUTE.size :])
    if found.get(_OIF) != struct.pack("=I", device):
        return None
    if _VIA in found:
        return ip_address(found[_VIA][2:])  # struct rtvia: family, address
    if _GATEWAY in found:
        return ip_address(found[_GATEWAY])
    # Where IPv4 has no route and a device is given, the kernel assumes that the destination is on
    # the link (net/ipv4/route.c). Then no table has matched.
    if not int.from_bytes(found.get(_TABLE, b""), "little"):
        return None
    return destination


def _neighbour_request(hop: Address, device: int, flags: int) -> bytes:
    return _NEIGHBOUR.pack(_family(hop), device, 0, flags, 0) + _attribute(_NDA_DST, hop.packed)


def _neighbour(reply: Reply) -> Neighbour:
    if reply.refusal == errno.EINVAL:
        raise DataplaneError("the kernel does not look up neighbours: it is older than 5.0")
    if reply.refusal:
        return Neighbour(None, is_fresh=False)
    _, _, state, _, _ = _NEIGHBOUR.unpack_from(reply.body)
    mac = _attributes(reply.body[_NEIGHBOUR.size :]).get(_NDA_LLADDR)
    return Neighbour(mac if state & _NUD_VALID else None, is_fresh=bool(state & _NUD_FRESH))
