# SPDX-License-Identifier: Apache-2.0
"""QUIC connection ids at every length and offset, and what becomes of them over roster changes."""

import struct

import pytest
from scapy.layers.inet import UDP

from support.documents.roster import VIP4, VIP6, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import ETHER, ip4, ip6
from tidegate.model.decision import Decision
from tidegate.model.document_types import BackendState
from tidegate.model.values import Desired, Quic
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

V1, V2 = 1, 0x6B3343CF
SERVER = bytes(range(0xA0, 0xAF))
LAYOUTS = [(length, offset) for length in (1, 2, 8, 15) for offset in (1, 2, 5)]


def wanted(quic: Quic, state: BackendState = "active", *, gone: bool = False) -> Desired:
    owner = backend("b2", quic_server_id=SERVER[: quic.server_id_length], state=state)
    backends = [backend("b1"), *([] if gone else [owner]), backend("b3")]
    vips = [vip("h4", VIP4, 443, "udp", quic=quic), vip("h6", VIP6, 443, "udp", quic=quic)]
    return desired(vips, backends, delay=5)


def connection_id(quic: Quic, total: int = 20) -> bytes:
    before = bytes(range(1, quic.offset + 1))
    return (before + SERVER[: quic.server_id_length]).ljust(total, b"\xee")


def short(id_: bytes) -> bytes:
    return b"\x40" + id_ + b"packet"


def long(kind: int, id_: bytes, version: int = V1) -> bytes:
    return struct.pack(">BIB", 0xC0 | kind << 4, version, len(id_)) + id_ + bytes(8)


def datagram(payload: bytes, source: str = "10.77.0.9", *, v6: bool = False) -> bytes:
    ip = ip6("fd77::9") if v6 else ip4(source)
    return bytes(ETHER / ip / UDP(sport=40000, dport=443) / payload)


@pytest.mark.parametrize("names", [("b1", "b2"), ("b2", "b1")])
def test_of_two_that_drain_one_name_has_the_id(both: Both, names: tuple[str, str]) -> None:
    """The first by name on every host, whichever had it last."""
    quic = Quic(2)
    h4, other = vip("h4", VIP4, 443, "udp", quic=quic), backend("b3")
    for name in names:
        both.want(desired([h4], [backend(name, quic_server_id=SERVER[:2]), other]))
    both.want(desired([h4], [other]))
    result = both.send(datagram(short(connection_id(quic))))
    assert (result.decision, both.backend(result)) == (Decision.QUIC, "b1")


@pytest.mark.parametrize(("length", "offset"), LAYOUTS)
@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_the_id_is_found_wherever_it_is(both: Both, length: int, offset: int, v6: bool) -> None:
    """Short and long headers, at the configured place."""
    quic = Quic(length, offset)
    both.want(wanted(quic))
    for payload in (short(connection_id(quic)), long(2, connection_id(quic))):
        result = both.send(datagram(payload, v6=v6))
        assert (result.decision, both.backend(result)) == (Decision.QUIC, "b2")


@pytest.mark.parametrize(("length", "offset"), LAYOUTS)
def test_a_byte_too_few_goes_by_the_table(both: Both, length: int, offset: int) -> None:
    """The id must be whole, within the datagram and, in a long header, within its length."""
    quic = Quic(length, offset)
    both.want(wanted(quic))
    whole = connection_id(quic, length + offset)
    assert both.send(datagram(b"\x40" + whole)).decision == Decision.QUIC
    assert both.send(datagram(long(2, whole))).decision == Decision.QUIC
    for payload in (b"\x40" + whole[:-1], long(2, whole[:-1]), long(2, whole)[:-9]):
        assert both.send(datagram(payload)).decision in (Decision.DATAGRAM, Decision.TRACKED)


def test_a_datagram_cut_at_any_byte_is_forwarded(both: Both) -> None:
    """None of them is dropped: the table takes what has no id."""
    quic = Quic(8, 1)
    both.want(wanted(quic))
    for whole in (short(connection_id(quic)), long(2, connection_id(quic))):
        found = [both.send(datagram(whole[:size])) for size in range(len(whole) + 1)]
        assert {r.verdict for r in found} == {Verdict.TX}
        assert [r.decision for r in found].index(Decision.QUIC) in (1 + 9, 6 + 9)


TYPES = {  # RFC 9000 section 17.2, RFC 9369 section 3.2
    "Initial, version 1": (0, V1),
    "0-RTT, version 1": (1, V1),
    "Handshake, version 1": (2, V1),
    "Retry, version 1": (3, V1),
    "Retry, version 2": (0, V2),
    "Initial, version 2": (1, V2),
    "0-RTT, version 2": (2, V2),
    "Handshake, version 2": (3, V2),
    "of a version to come": (0, 0x1A2A3A4A),
}


@pytest.mark.parametrize("name", TYPES)
def test_whatever_has_a_known_id_goes_by_it(both: Both, name: str) -> None:
    """An Initial too: from its second on it has an id of the server's (draft section 4)."""
    kind, version = TYPES[name]
    quic = Quic(2, 1)
    both.want(wanted(quic))
    result = both.send(datagram(long(kind, connection_id(quic), version)))
    assert (result.decision, both.backend(result)) == (Decision.QUIC, "b2")


def test_version_negotiation_goes_by_the_table(both: Both) -> None:
    """Version 0: no client sends it."""
    quic = Quic(2, 1)
    both.want(wanted(quic))
    result = both.send(datagram(long(2, connection_id(quic), 0)))
    assert result.decision == Decision.DATAGRAM


@pytest.mark.parametrize("first", [0x00, 0x3F, 0x40, 0x7F])
@pytest.mark.parametrize("is_long", [False, True])
def test_the_fixed_bit_may_have_any_value(both: Both, first: int, *, is_long: bool) -> None:
    """It is no invariant (RFC 8999), and endpoints that agree on it grease it (RFC 9287)."""
    quic = Quic(4, 1)
    both.want(wanted(quic))
    payload = long(2, connection_id(quic)) if is_long else short(connection_id(quic))
    greased = bytes([payload[0] & 0x80 | first]) + payload[1:]
    assert both.send(datagram(greased)).decision == Decision.QUIC


@pytest.mark.parametrize("config", range(8))
@pytest.mark.parametrize("offset", [1, 3])
def test_config_bits_of_ones_say_unroutable(both: Both, config: int, offset: int) -> None:
    """The three bits in front of an id (draft section 3.1): 0b111 is no configuration."""
    quic = Quic(4, offset)
    both.want(wanted(quic))
    id_ = bytes([config << 5 | 9]) + connection_id(quic)[1:]
    for payload in (short(id_), long(2, id_)):
        is_routed = both.send(datagram(payload)).decision == Decision.QUIC
        assert is_routed == (config != 7)


def test_a_routed_packet_keeps_the_flows_entry_alive(both: Both) -> None:
    """So that what cannot be routed on the same ports goes where it went before."""
    quic = Quic(4, 1)
    both.want(wanted(quic))
    unroutable = datagram(short(b"\xff" + bytes(19)))
    first = both.send(unroutable)
    assert first.decision == Decision.DATAGRAM
    for _ in range(4):
        both.age(40)
        assert both.send(datagram(short(connection_id(quic)))).decision == Decision.QUIC
    again = both.send(unroutable)
    assert (again.decision, again.backend) == (Decision.TRACKED, first.backend)


@pytest.mark.parametrize("state", ["active", "drain"])
def test_a_connection_that_migrates_stays(both: Both, state: BackendState) -> None:
    """From any address and without an entry; a backend that drains keeps its connections too."""
    quic = Quic(4, 1)
    both.want(wanted(quic))
    both.want(wanted(quic, state))
    sources = [f"10.77.{i}.1" for i in range(20)]
    frames = [datagram(short(connection_id(quic)), source) for source in sources]
    assert set(both.backends(frames)) == {"b2"}
    assert both.state.flows.entries == {}


@pytest.mark.parametrize("state", ["quarantine", "disabled"])
def test_connections_of_a_failed_backend_go_by_the_table(both: Both, state: BackendState) -> None:
    """At once, all of a client's packets to one backend."""
    quic = Quic(4, 1)
    both.want(wanted(quic))
    frame = datagram(short(connection_id(quic)))
    assert both.backends([frame]) == ["b2"]
    both.want(wanted(quic, state))
    results = [both.send(frame) for _ in range(3)]
    assert [r.decision for r in results] == [Decision.DATAGRAM, Decision.TRACKED, Decision.TRACKED]
    assert {both.backend(r) for r in results} <= {"b1", "b3"}
    both.want(wanted(quic))
    assert both.send(frame).decision == Decision.QUIC


def test_a_retired_backends_id_falls_back(both: Both) -> None:
    """Its connections last as long as the deregistration delay."""
    quic = Quic(4, 1)
    both.want(wanted(quic))
    frame = datagram(short(connection_id(quic)))
    both.want(wanted(quic, gone=True))
    assert both.backends([frame]) == ["b2"]
    both.want(wanted(quic, gone=True), after=6)
    assert both.send(frame).decision == Decision.DATAGRAM


def test_a_vip_without_quic_does_not_look(both: Both) -> None:
    """The same payload to another VIP is a datagram."""
    quic = Quic(4, 1)
    roster = wanted(quic)
    roster.vips["plain"] = vip("plain", VIP4, 444, "udp")  # type: ignore[index]
    both.want(roster)
    frame = bytearray(datagram(short(connection_id(quic))))
    frame[36:38] = (444).to_bytes(2)
    assert both.send(bytes(frame)).decision == Decision.DATAGRAM
