# SPDX-License-Identifier: Apache-2.0
"""What an entry knows of its flow: when it ends, and who may take its place."""

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import CLIENT4, ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import key_of
from tidegate.model.decision import Decision
from tidegate.model.values import Desired
from tidegate.spec.lines import CONTESTED, ENDING, SPOKE, Entry

pytestmark = pytest.mark.root

PORTS = range(40000, 40040)
NEW = 0x50000
"""A sequence number that no flow from before is near to."""
IDLE = 4500
SILENCE = 13
"""Seconds that are two ticks at least, and less than any idle time."""


def wanted(*, pool: str = "web", without: str = "", idle: int = IDLE, **b2: object) -> Desired:
    """Return three backends in the VIP's pool, and one in another; b2 may be special, or gone."""
    vips = [vip("www", "10.99.0.1", pool=pool, tcp_idle_timeout=idle)]
    vips += [vip("six", "fd99::1", pool=pool), vip("dns", "10.99.0.1", 53, "udp", pool=pool)]
    servers = [backend("b1"), backend("b2", **b2), backend("b3")]
    servers = [each for each in servers if each.name != without]
    return desired(vips, [*servers, backend("b9", pool="other")])


def entry(both: Both) -> Entry:
    """Return the only entry of the connection table."""
    (found,) = both.state.flows.entries.values()
    return found


def establish(both: Both, owner: str = "b2") -> int:
    """Return the port of a flow of this backend, which is established."""
    both.want(wanted())
    for sport in PORTS:
        syn, ack = (both.send(tcp(flags, sport=sport)) for flags in ("S", "A"))
        if both.backend(ack) == owner == both.backend(syn):
            both.send(tcp("PA", sport=sport))
            return sport
    raise AssertionError(f"no flow of forty is {owner}'s")


LEAVES: dict[str, Desired] = {
    "drain": wanted(state="drain"),
    "weight 0": wanted(weight=0),
    "its key is deleted": wanted(without="b2"),
    "the VIP has another pool": wanted(pool="other"),
}
"""Ways in which a backend takes no new flows any more, and keeps those that it has."""


@pytest.mark.parametrize("how", LEAVES)
def test_a_syn_does_not_follow_an_entry_to_who_takes_none(both: Both, how: str) -> None:
    """Proxies reuse ports: their new connections must not go to who is on the way out."""
    sport = establish(both)
    both.want(LEAVES[how])
    assert both.backend(both.send(tcp("PA", sport=sport))) == "b2"
    syn = both.send(tcp("S", sport=sport, seq=NEW))
    assert both.backend(syn) not in (None, "b2")
    ack = both.send(tcp("A", sport=sport, seq=NEW + 1))
    assert (ack.decision, ack.backend) == (Decision.FRESH, syn.backend)
    for _ in range(2):
        after = both.send(tcp("PA", sport=sport, seq=NEW + 1))
        assert (after.decision, after.backend) == (Decision.TRACKED, syn.backend)


@pytest.mark.parametrize("how", LEAVES)
def test_a_forged_syn_moves_no_live_flow(both: Both, how: str) -> None:
    """It leaves a mark; the flow's own packets do not continue from its number."""
    sport = establish(both)
    both.want(LEAVES[how])
    for seq in (NEW, NEW + 0x20000):
        both.send(tcp("S", sport=sport, seq=seq))
        for number in (1, 1000, 0x7000):
            kept = both.send(tcp("PA", sport=sport, seq=number))
            assert (kept.decision, both.backend(kept)) == (Decision.TRACKED, "b2")


def test_a_syn_on_a_live_flow_goes_where_the_flow_goes(both: Both) -> None:
    """Its backend takes new flows too, and answers as RFC 9293 section 3.10.7.4 says."""
    sport = establish(both)
    servers = [backend(f"b{i}") for i in range(1, 7)]
    more = desired([vip("www", "10.99.0.1")], servers)
    both.want(more)
    again = both.send(tcp("S", sport=sport, seq=NEW))
    assert both.backend(again) == "b2"
    assert both.state.syns.entries == {}


@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_a_client_ends_its_flow(both: Both, flags: str) -> None:
    """By FIN or RST; what it still acknowledges is followed, and its ports are free."""
    sport = establish(both)
    both.want(wanted(state="drain"))
    end = both.send(tcp(flags, sport=sport, seq=9))
    assert both.backend(end) == "b2"
    place = both.state.flows.find(key_of(both.state, tcp("A", sport=sport)))
    assert place is not None
    assert both.state.flows.entries[place].flags & ENDING
    late = both.send(tcp("A", sport=sport, seq=10))
    assert (late.decision, both.backend(late)) == (Decision.TRACKED, "b2")
    both.want(wanted())  # b2 takes new flows again, and the slot is its own
    syn = both.send(tcp("S", sport=sport, seq=NEW))
    assert syn.decision == Decision.SYN
    ack = both.send(tcp("A", sport=sport, seq=NEW + 1))
    assert (ack.decision, ack.backend) == (Decision.FRESH, syn.backend)
    assert not both.state.flows.entries[place].flags & (ENDING | CONTESTED)


def test_what_speaks_again_after_silence_lives(both: Both) -> None:
    """A new flow on the ports of an ended one, whose SYN went by the table without a look."""
    both.want(wanted())
    for flags in ("S", "A", "FA", "A"):
        both.send(tcp(flags))
    assert entry(both).flags & ENDING
    both.send(tcp("S", seq=NEW))
    both.age(SILENCE)
    both.send(tcp("A", seq=NEW + 1))
    assert entry(both).flags == SPOKE


def test_a_client_that_closed_its_half_goes_on_receiving(both: Both) -> None:
    """Its acknowledgements follow the entry for as long as they come."""
    sport = establish(both)
    both.send(tcp("FA", sport=sport))
    both.want(wanted(without="b2"))
    for _ in range(5):
        both.age(4)
        assert both.backend(both.send(tcp("A", sport=sport))) == "b2"


@pytest.mark.parametrize(("seconds", "is_new"), [(IDLE - 60, False), (IDLE + SILENCE, True)])
def test_a_syn_on_a_flow_silent_for_long_is_new(both: Both, seconds: int, *, is_new: bool) -> None:
    """The time is never early, and two ticks late at most; packets of the flow still follow it."""
    sport = establish(both)
    both.want(wanted(without="b2"))
    both.want(wanted())  # so that it takes new flows, and its slots have changed
    both.age(seconds)
    syn = both.send(tcp("S", sport=sport, seq=NEW))
    assert syn.decision == (Decision.SYN if is_new else Decision.TRACKED)
    assert both.backend(both.send(tcp("PA", sport=sport))) == "b2"


def test_a_flow_may_be_silent_for_ever_where_the_vip_says_so(both: Both) -> None:
    """`tcp_idle_timeout` 0."""
    both.want(wanted(idle=0))
    both.send(tcp("A"))
    both.want(wanted(idle=0, without="b1"))
    both.want(wanted(idle=0))
    both.age(100_000)
    assert both.send(tcp("S", seq=NEW)).decision in (Decision.TRACKED, Decision.SYN)


def test_a_steady_syn_looks_at_no_entry(both: Both) -> None:
    """Where no slot has changed the entry could only name the owner of the slot."""
    both.want(wanted())
    for sport in PORTS:
        both.send(tcp("A", sport=sport))
        assert both.send(tcp("S", sport=sport, seq=NEW)).decision == Decision.SYN
    assert both.state.syns.entries == {}


TALK: list[tuple[str, Callable[[], bytes]]] = [
    ("TCP", lambda: tcp("A")),
    ("TCP over IPv6", lambda: tcp("A", ip6())),
    ("UDP", udp),
]


@pytest.mark.parametrize(("name", "frame"), TALK, ids=[name for name, _ in TALK])
def test_a_flow_has_spoken_twice_with_its_second_packet(
    both: Both, name: str, frame: Callable[[], bytes]
) -> None:
    """Which makes it outlive those of a flood, that speak once."""
    assert name
    both.want(wanted())
    flags = []
    for _ in range(3):
        both.send(frame())
        flags.append(entry(both).flags)
    assert flags == [0, SPOKE, SPOKE]


def test_an_error_is_no_sign_of_life(both: Both) -> None:
    """Whoever sends errors about a flow can neither keep it nor end it."""
    both.want(wanted())
    both.send(tcp("A"))
    both.age(60)
    before = entry(both)
    quoted = IP(src=VIP4, dst=CLIENT4) / TCP(sport=80, dport=40000, flags="R")
    error = bytes(ETHER / ip4("10.0.0.254") / ICMP(type=3, code=1) / quoted)
    assert both.send(error).decision == Decision.ERROR
    assert entry(both) == before
