# SPDX-License-Identifier: Apache-2.0
"""One document: what is accepted, and how each fault is named."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from tidegate.keyspace.documents.addresses import (
    parse_address,
    parse_network,
    parse_service_network,
)
from tidegate.keyspace.documents.decode import MAX_BYTES, Fault, decode
from tidegate.keyspace.paths import is_name
from tidegate.model.document_types import Name
from tidegate.model.documents import BackendDocument, PoolDocument, SettingsDocument, VipDocument

VIP = {"address": "192.0.2.1", "port": 443, "protocol": "tcp", "pool": "web"}


def faults(value: bytes, kind: type[Struct] = VipDocument) -> list[Fault]:
    found = decode(value, kind)
    assert isinstance(found, list), found
    return found


def vip(**changes: object) -> bytes:
    return json.dumps(VIP | changes).encode()


def test_a_good_document_is_decoded() -> None:
    """A document with known fields of the right types becomes its struct."""
    assert decode(vip(), VipDocument) == VipDocument(**VIP)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "place", "words", "stage"),
    [
        (b'{"address":', "", "not valid JSON", "decode"),
        (b"", "", "not valid JSON", "decode"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "", "not valid JSON", "decode"),
        (b"{\xef\xbb\xbf}", "", "not valid JSON", "decode"),
        ("{}".encode("utf-16"), "", "not UTF-8", "decode"),
        (b'{"address": "\xff"}', "", "not UTF-8: byte 0xff at position 13", "decode"),
        (b"[" * 50_000, "", "nested too deeply", "decode"),
        (b" " * (MAX_BYTES + 1), "", "65537 bytes; the limit is 65536", "decode"),
        (b"[1]", "", "is [1]; it must be a JSON object", "schema"),
        (b"null", "", "is null; it must be a JSON object", "schema"),
        (vip(port=70000), "port", "port is 70000; it must be a whole number from 0 to", "schema"),
        (vip(port=-1), "port", "port is -1; it must be a whole number from 0 to 65535", "schema"),
        (vip(port="443"), "port", 'port is "443"; it must be a whole number', "schema"),
        (vip(port=True), "port", "port is true; it must be a whole number", "schema"),
        (vip(port=10**18), "port", "port is 1000000000000000000; it must be", "schema"),
        (vip(protocol="sctp"), "protocol", 'is "sctp"; it must be one of "tcp", "udp"', "schema"),
        (vip(pool="a b"), "pool", 'is "a b"; it must be a name', "schema"),
        (vip(pool=None), "pool", "pool is null; it must be a name", "schema"),
        (vip(address=[]), "address", "address is []; it must be a string", "schema"),
        (vip(wieght=1), "wieght", '"wieght" is not a field of this document', "schema"),
    ],
)
def test_a_fault_names_field_value_and_what_is_allowed(
    value: bytes, place: str, words: str, stage: str
) -> None:
    """Each fault has its field, a text with what was found, and its stage."""
    (fault,) = faults(value)
    assert (fault.field, fault.stage) == (place, stage)
    assert words in fault.reason
    assert not fault.reason.endswith(".")
    assert not fault.reason.startswith("The ")


def test_a_missing_field_is_named() -> None:
    """A field without a default that is not there is a fault of that field."""
    assert [fault.field for fault in faults(b"{}", BackendDocument)] == ["address"]


def test_all_faults_of_a_document_are_found_at_once() -> None:
    """Nobody has to mend a document fault by fault."""
    found = faults(b'{"address": 1, "weight": -1, "state": "on", "colour": "red"}', BackendDocument)
    assert {fault.field for fault in found} == {"address", "weight", "state", "colour"}


@pytest.mark.parametrize("second", ['"port"', '"p\\u006frt"'])
def test_a_field_that_appears_twice_is_refused(second: str) -> None:
    """JSON readers differ in which of two equal names counts, so neither does."""
    value = vip()[:-1] + f", {second}: 444}}".encode()
    assert [(fault.field, fault.stage) for fault in faults(value)] == [("port", "decode")]


def test_a_value_that_looks_like_a_field_is_no_duplicate() -> None:
    """A pool may be called `pool`."""
    assert isinstance(decode(vip(pool="pool"), VipDocument), VipDocument)


def test_many_faults_are_bounded() -> None:
    """A document of nonsense yields some faults and a count of the rest."""
    found = faults(json.dumps({f"x{i}": 1 for i in range(4000)}).encode(), PoolDocument)
    assert len(found) == 33
    assert found[-1].reason == "the document has 3968 more faults"


@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_foreign_bytes_never_raise(value: bytes) -> None:
    """Whatever somebody writes is a document or a list of faults."""
    for kind in (VipDocument, PoolDocument, BackendDocument, SettingsDocument):
        found = decode(value, kind)
        assert isinstance(found, kind) or (isinstance(found, list) and found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be an IPv4 or IPv6 address"),
        ("192.0.2.256", "must be an IPv4 or IPv6 address"),
        ("192.0.2.01", "must be an IPv4 or IPv6 address"),
        ("192.0.2.0/24", "must be an IPv4 or IPv6 address"),
        ("192.0.2.1 ", "must be an IPv4 or IPv6 address"),
        ("lb.example", "must be an IPv4 or IPv6 address"),
        ("2001:db8::1::", "must be an IPv4 or IPv6 address"),
        ("1" * 10_000, "must be an IPv4 or IPv6 address"),
        ("0.0.0.0", "the unspecified address"),  # noqa: S104 - refused here
        ("::", "the unspecified address"),
        ("0.1.2.3", "an address of 0.0.0.0/8"),
        ("127.0.0.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("224.0.0.1", "a multicast address"),
        ("239.1.2.3", "a multicast address"),
        ("ff02::1", "a multicast address"),
        ("255.255.255.255", "the broadcast address"),
        ("169.254.1.1", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%eth0", "names an interface"),
        ("2001:db8::1%eth0", "names an interface"),
        ("::ffff:192.0.2.1", "write 192.0.2.1 instead"),
    ],
)
def test_addresses_that_nothing_can_be_routed_to_are_refused(text: str, words: str) -> None:
    """An address that makes no sense as a VIP or backend is refused with its kind."""
    reason = parse_address(text)
    assert isinstance(reason, str)
    assert words in reason
    assert len(reason) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.0/33", "must be an IPv4 or IPv6 network"),
        ("192.0.2.0/-1", "must be an IPv4 or IPv6 network"),
        ("192.0.2.0/255.255.255.0", "must be an IPv4 or IPv6 network"),
        ("192.0.2.0/24/1", "must be an IPv4 or IPv6 network"),
        ("fe80::%eth0/64", "must be an IPv4 or IPv6 network"),
        ("2001:db8::/129", "must be an IPv4 or IPv6 network"),
        ("1/" * 5000, "must be an IPv4 or IPv6 network"),
        ("192.0.2.1/24", "write 192.0.2.0/24 instead"),
        ("2001:db8::1/64", "write 2001:db8::/64 instead"),
        ("::ffff:192.0.2.0/120", "an IPv4-mapped network"),
        ("0.0.0.0/0", "which has 0.0.0.0/8 in it"),
        ("126.0.0.0/7", "which has loopback addresses in it"),
        ("169.0.0.0/8", "which has link-local addresses in it"),
        ("192.0.0.0/2", "which has multicast addresses in it"),
        ("::/1", "which has the unspecified address in it"),
        ("fe00::/7", "which has link-local addresses in it"),
    ],
)
def test_networks_that_a_vip_cannot_be_are_refused(text: str, words: str) -> None:
    """Every address of a VIP's network must be one that routers forward to it."""
    reason = parse_service_network(text)
    assert isinstance(reason, str)
    assert words in reason
    assert len(reason) < 250


@pytest.mark.parametrize("text", ["192.0.2.0/24", "10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"])
def test_service_networks_are_accepted(text: str) -> None:
    """In the notation that they are written in."""
    assert str(parse_service_network(text)) == text


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "127.0.0.0/8"])
def test_client_networks_may_be_any(text: str) -> None:
    """A deny list may name what no router forwards, and everything."""
    assert str(parse_network(text)) == text


@pytest.mark.parametrize("text", ["192.0.2.1", "10.0.0.0", "169.1.2.3", "2001:db8::1", "fd00::1"])
def test_routable_addresses_are_accepted(text: str) -> None:
    """Public, private and documentation addresses are all somebody's unicast addresses."""
    assert str(parse_address(text)) == text


@given(st.text(alphabet="aZ09._-/ \n", max_size=70))
def test_names_in_keys_and_in_documents_follow_one_rule(text: str) -> None:
    """What may be a pool's key may be a VIP's pool, and the other way round."""
    try:
        msgspec.convert(text, Name)
        in_document = not text.endswith("\n")  # `$` lets one line feed through; no key has it
    except msgspec.ValidationError:
        in_document = False
    assert is_name(text) == in_document


@pytest.mark.parametrize("text", ['{"address": "198.51.100.1"}', "{}", "[]", "{", ""])
def test_a_byte_order_mark_is_left_out(text: str) -> None:
    """Wherever a document comes from, it is what it is without the mark."""
    plain = text.encode()
    assert decode(b"\xef\xbb\xbf" + plain, BackendDocument) == decode(plain, BackendDocument)
