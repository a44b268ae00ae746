# SPDX-License-Identifier: Apache-2.0
"""Probes on their way into the tunnel: bpf/healthcheck.c against its specification."""

import ctypes
import random
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether

from support.documents.roster import backend, desired, generations, vip
from support.packets.frames import ETHER, ip4, ip6, tcp, udp
from support.packets.kernel import BUILD, LINK, Kernel, spec_state
from tidegate.dataplane.kernel import loader
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.tunnel.probes import Probes
from tidegate.errors import CompileError
from tidegate.model.decision import Reason
from tidegate.spec import Verdict
from tidegate.spec import decap as decapsulation
from tidegate.spec import process as balance
from tidegate.spec.healthcheck import Action, mark_of, process

pytestmark = pytest.mark.root


SHORTEST = 14 + 40
"""Test-run refuses a frame that is shorter than its EtherType's IP header."""


@dataclass
class Side:
    """The program over the maps of a balancer that has one generation in force."""

    kernel: Kernel
    probes: Probes


@dataclass
class Both:
    """The program and the specification, with the same generation."""

    sides: dict[str, Side]
    encapsulation: str = "ipip"
    counts: Counter[Reason] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.use(self.encapsulation)

    def use(self, encapsulation: str) -> None:
        """Continue with the generation of this encapsulation."""
        side = self.sides[encapsulation]
        self.kernel, self.probes = side.kernel, side.probes
        self.kernel.link(LINK)
        self.state = spec_state()
        self.state.install(GENERATIONS[encapsulation])
        self.ids = {
            key.name: placed.identity.id
            for key, placed in GENERATIONS[encapsulation].backends.items()
        }
        self.before = self.probes.counters()
        self.counts.clear()

    def send(self, frame: bytes, to: str = "", mark: int | None = None) -> tuple[Action, bytes]:
        """Send a frame through both and return the result, which must be the same."""
        mark = mark_of(self.ids[to]) if mark is None else mark
        expected = process(self.state, self.counts, frame, 1, mark)
        assert run(self.probes.program, frame, mark) == expected, frame.hex()
        assert self.probes.counters() - self.before == self.counts
        return expected


def run(program: int, frame: bytes, mark: int, gso_size: int = 0) -> tuple[Action, bytes]:
    """Run a tc program on one frame, as if it left through the loopback from a marked socket."""
    # struct __sk_buff: its third word is the mark, `gso_size` is at byte 176.
    context = bytearray(192)
    struct.pack_into("<I", context, 8, mark)
    struct.pack_into("<I", context, 176, gso_size)
    source = ctypes.create_string_buffer(frame, len(frame))
    result = ctypes.create_string_buffer(len(frame) + 512)
    context_buffer = ctypes.create_string_buffer(bytes(context), len(context))
    attr = struct.pack(
        "<IIIIQQIIIIQQ",
        program,
        0,
        len(frame),
        len(result),
        ctypes.addressof(source),
        ctypes.addressof(result),
        1,
        0,
        len(context),
        0,
        ctypes.addressof(context_buffer),
        0,
    )
    _, after = bpf._bpf(bpf._PROG_TEST_RUN, attr)
    action, _, size = struct.unpack_from("<iII", after, 4)
    return Action(action), result.raw[:size]


VIPS = [
    vip("web4", "10.99.0.1"),
    vip("web6", "fd99::1"),
    vip("dns4", "10.99.0.1", 53, "udp"),
    vip("dns6", "fd99::1", 53, "udp"),
    vip("any", "10.99.0.2", 0),
    vip("network", "10.98.0.0/16", 443),
]
BACKENDS = [
    backend("four1"),
    backend("six1", "fd01::1"),
    backend("failed2", state="quarantine"),
    backend("gone3", state="drain"),
]
ENCAPSULATIONS = ("ipip", "gue")
GENERATIONS = {
    kind: generations(desired(VIPS, BACKENDS, encapsulation=kind))[-1] for kind in ENCAPSULATIONS
}


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        found = {}
        for kind, generation in GENERATIONS.items():
            kernel = stack.enter_context(Kernel())
            kernel.install(generation)
            found[kind] = Side(kernel, stack.enter_context(Probes(BUILD, kernel.maps)))
        yield found


@pytest.fixture
def both(sides: dict[str, Side]) -> Both:
    return Both(sides)


NOT_PROBES = {
    "ARP": bytes(ETHER / ARP()),
    "TCP to another address": tcp("S", ip4(to="10.99.0.77")),
    "TCP to another port": tcp("S", dport=81),
    "UDP to a TCP port": udp(dport=80),
    "an unknown protocol": bytes(ETHER / ip4(proto=132)) + b"x" * 40,
    "a cut TCP header": tcp("S")[:-1],
    "an empty Ethernet frame": bytes(ETHER),
    "a VLAN tag": bytes(ETHER / Dot1Q(vlan=5) / ip4() / TCP(dport=80, flags="S")),
}


@pytest.mark.parametrize("name", NOT_PROBES)
def test_what_is_not_for_a_vip_is_not_ours(both: Both, name: str) -> None:
    """A mark alone makes no probe: somebody else may use the same by chance."""
    assert both.send(NOT_PROBES[name], "four1") == (Action.NEXT, NOT_PROBES[name])
    assert not both.counts


@pytest.mark.parametrize("mark", [0, 1, 0x5447, 0x5446_0001, 0x5448_0001, 0x5447 << 8])
def test_without_our_mark_nothing_is_ours(both: Both, mark: int) -> None:
    """The host's own connections to a VIP are balanced like anybody's."""
    assert both.send(tcp("S"), mark=mark) == (Action.NEXT, tcp("S"))
    assert not both.counts


@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
@pytest.mark.parametrize("to", ["four1", "six1"])
@pytest.mark.parametrize("kind", ENCAPSULATIONS)
@pytest.mark.parametrize("data", ["", "x", "four", "x" * 999])
def test_a_probe_reaches_the_backend_that_its_mark_names(
    both: Both, ip: Any, to: str, kind: str, data: str
) -> None:
    """The outer header is for that backend, and its host takes out what was sent, byte for byte."""
    both.use(kind)
    frame = tcp("PA", ip, data=data)

    action, out = both.send(frame, to)

    assert action == Action.SEND
    seen = Ether(out)
    assert seen.src == "02:00:00:00:00:01"
    assert seen.dst == ("02:00:00:00:00:04" if to == "four1" else "02:00:00:00:00:06")
    assert seen.payload.dst == ("10.1.0.1" if to == "four1" else "fd01::1")
    outcomes: Counter[decapsulation.Outcome] = Counter()
    verdict, inner = decapsulation.process(decapsulation.ANYTHING, outcomes, out)
    assert (verdict, inner[14:]) == (Verdict.PASS, frame[14:])
    assert set(outcomes) <= decapsulation.TAKEN_OUT
    if kind == "gue":
        assert seen[UDP].chksum != 0  # so it was verified


@pytest.mark.parametrize("hops", [1, 2, 63, 64, 65, 255])
@pytest.mark.parametrize("to", ["four1", "six1"])
@pytest.mark.parametrize("kind", ENCAPSULATIONS)
def test_a_probe_has_the_usual_hop_limit_in_the_tunnel(
    both: Both, kind: str, to: str, hops: int
) -> None:
    """Whatever its socket sends with; what is no probe keeps its own. Checksums stay right."""
    both.use(kind)
    for ip, name in ((ip4(ttl=hops), "ttl"), (ip6(hlim=hops), "hlim")):
        frame = tcp("PA", ip, data="x")
        action, out = both.send(frame, to)
        assert action == Action.SEND
        verdict, inner = decapsulation.process(decapsulation.ANYTHING, Counter(), out)
        assert verdict == Verdict.PASS
        assert getattr(Ether(inner).payload, name) == 64
        rebuilt = Ether(inner)
        if name == "ttl":
            del rebuilt.payload.chksum
        assert bytes(rebuilt) == inner
        plain = tcp("PA", ip, data="x", dport=81)
        assert both.send(plain, to) == (Action.NEXT, plain)


def test_what_took_the_tunnel_is_counted_by_backend(both: Both) -> None:
    """Also what is too big for it, as a client's packet would be; not what no backend is for."""
    first, other = both.ids["four1"], both.ids["six1"]
    before, untouched = both.probes.sent(first), both.probes.sent(other)
    both.send(tcp("S"), "four1")
    assert both.probes.sent(first) == before + 1
    both.send(udp(data="x" * 1472), "four1")
    assert both.probes.sent(first) == before + 2
    both.send(tcp("S"), mark=mark_of(60000))
    both.send(tcp("S", dport=81), "four1")
    both.send(tcp("S"), mark=first)
    assert both.probes.sent(first) == before + 2
    assert both.probes.sent(60000) == 0
    assert both.probes.sent(other) == untouched


@pytest.mark.parametrize("kind", ENCAPSULATIONS)
def test_a_probe_looks_like_the_traffic_of_clients(both: Both, kind: str) -> None:
    """The frame is the one that the balancer sends for a client's packet to the same backend."""
    both.use(kind)
    names = {both.ids[name]: name for name in ("four1", "six1")}
    for frame in (tcp("S", ip4(tos=0xB9)), tcp("A", ip6(tc=0x22), data="?"), udp(), udp(ip6())):
        balanced = balance(both.state, frame, 1, 0)
        assert balanced.backend in names
        assert both.send(frame, names[balanced.backend]) == (Action.SEND, balanced.frame)


@pytest.mark.parametrize("name", ["failed2", "gone3"])
def test_a_backend_that_gets_no_new_flows_is_probed(both: Both, name: str) -> None:
    """One in quarantine must be seen to come back; one that drains is still of interest."""
    assert both.send(tcp("S"), name)[0] == Action.SEND


OTHER_PROBES = {
    "any port": tcp("S", ip4(to="10.99.0.2"), dport=4711),
    "an address of a network": tcp("S", ip4(to="10.98.3.4"), dport=443),
    "UDP": udp(),
    "UDP over IPv6": udp(ip6()),
    "a ping": bytes(ETHER / ip4() / ICMP() / b"hello"),
    "a ping over IPv6": bytes(ETHER / ip6() / ICMPv6EchoRequest(data=b"hello")),
    "IP options": tcp("S", ip4(options=[IPOption_NOP()] * 8)),
    "an IPv6 extension header": bytes(
        ETHER / ip6() / IPv6ExtHdrDestOpt() / TCP(dport=80, flags="S")
    ),
    "UDP without a checksum": bytes(ETHER / ip4() / UDP(dport=53, chksum=0) / b"hello"),
}


@pytest.mark.parametrize("kind", ENCAPSULATIONS)
@pytest.mark.parametrize("name", OTHER_PROBES)
def test_all_that_a_vip_serves_can_be_probed(both: Both, name: str, kind: str) -> None:
    """The VIP look-up is the balancer's, and backends accept what is sent."""
    both.use(kind)
    for to in ("four1", "six1"):
        action, out = both.send(OTHER_PROBES[name], to)
        assert action == Action.SEND
        verdict, inner = decapsulation.process(decapsulation.ANYTHING, Counter(), out)
        assert (verdict, inner[14:]) == (Verdict.PASS, OTHER_PROBES[name][14:])


@dataclass(frozen=True)
class Case:
    """A probe that cannot be sent."""

    why: str
    frame: bytes
    reason: Reason
    to: str = "four1"


REFUSED = {
    "a length beyond the frame": Case("no host sends it", tcp("S", ip4(len=41)), Reason.BAD_LENGTH),
    "a length below the headers": Case("the same", tcp("S", ip4(len=39)), Reason.BAD_LENGTH),
    "padding": Case("frames are padded on the wire", tcp("S") + bytes(6), Reason.BAD_LENGTH),
    "a first fragment": Case(
        "later ones have no port, so they could not follow it",
        tcp("S", ip4(flags="MF")),
        Reason.FRAGMENT,
    ),
    "a later fragment": Case(
        "alone it would be balanced to anybody",
        bytes(ETHER / ip4(frag=100) / (b"x" * 40)),
        Reason.FRAGMENT,
    ),
    "an IPv6 fragment": Case(
        "the same",
        bytes(ETHER / ip6() / IPv6ExtHdrFragment(m=1, nh=6) / TCP(dport=80)),
        Reason.FRAGMENT,
    ),
    "one byte too many": Case(
        "no error with the MTU of the tunnel is sent on the host: probes are small",
        tcp("A", data="x" * (1500 - 20 - 40 + 1)),
        Reason.TOO_BIG,
    ),
    "one byte too many in IPv6": Case(
        "the same", tcp("A", data="x" * (1500 - 40 - 40 + 1)), Reason.TOO_BIG, "six1"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_probe_that_cannot_be_sent_is_dropped_and_counted(both: Both, name: str) -> None:
    """Sent plain it would be balanced, and the answer would be another backend's."""
    case = REFUSED[name]
    assert both.send(case.frame, case.to) == (Action.DROP, case.frame), case.why
    assert both.counts == {case.reason: 1}


def test_the_largest_probe_fits(both: Both) -> None:
    """The limit is the link's MTU less the outer headers, to the byte."""
    for kind, extra in (("ipip", 0), ("gue", 8)):
        both.use(kind)
        for to, outer in (("four1", 20), ("six1", 40)):
            room = 1500 - outer - extra - 40
            assert both.send(tcp("A", data="x" * room), to)[0] == Action.SEND
            assert both.send(tcp("A", data="x" * (room + 1)), to)[0] == Action.DROP


@pytest.mark.parametrize("id_", [0, 500, 0xFFFF])
def test_an_id_without_a_backend_gets_nothing(both: Both, id_: int) -> None:
    """The backend was retired meanwhile, or never was."""
    assert both.send(tcp("S"), mark=mark_of(id_)) == (Action.DROP, tcp("S"))
    assert both.counts == {Reason.NO_BACKEND: 1}


def test_without_a_gateway_there_is_nowhere_to_send(both: Both) -> None:
    """The other family is not affected."""
    link = LINK._replace(gateway4=None)
    both.kernel.link(link)
    both.state.links = {1: link}
    assert both.send(tcp("S"), "four1")[0] == Action.DROP
    assert both.send(tcp("S"), "six1")[0] == Action.SEND
    assert both.counts == {Reason.NO_GATEWAY: 1, Reason.NONE: 1}


@pytest.mark.parametrize("ip", [ip4(), ip6()], ids=["v4", "v6"])
@pytest.mark.parametrize("to", ["four1", "six1"])
def test_gue_takes_a_checksum_that_is_not_filled_in_yet(both: Both, ip: Any, to: str) -> None:
    """The outer checksum is that of the packet as it will be when its own has been filled in.

    A sender that offloads leaves the sum of the pseudo-header in its place
    (Documentation/networking/checksum-offloads.rst).
    """
    both.use("gue")
    whole = tcp("PA", ip, data="hello")
    at = len(whole) - len("hello") - 20 + 16
    pseudo = IP if ip.version == 4 else IPv6
    packet = pseudo(whole[14:])
    addresses = packet.src, packet.dst
    pending = whole[:at] + _pseudo_sum(*addresses, len("hello") + 20) + whole[at + 2 :]

    offloaded = both.send(pending, to)[1]

    shift = len(offloaded) - len(pending)
    filled = offloaded[: at + shift] + whole[at : at + 2] + offloaded[at + shift + 2 :]
    assert filled == both.send(whole, to)[1]
    outcomes: Counter[decapsulation.Outcome] = Counter()
    decapsulation.process(decapsulation.ANYTHING, outcomes, filled)
    assert set(outcomes) <= decapsulation.TAKEN_OUT


def _pseudo_sum(source: str, destination: str, size: int) -> bytes:
    words = ip_address(source).packed + ip_address(destination).packed
    total = sum(struct.unpack(f">{len(words) // 2}H", words)) + 6 + size
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total.to_bytes(2)


def test_what_the_kernel_cannot_grow_is_dropped(both: Both) -> None:
    """A segmented packet of no known kind is one; it must not go out plain."""
    mark = mark_of(both.ids["four1"])
    assert run(both.probes.program, tcp("A"), mark, gso_size=536) == (Action.DROP, tcp("A"))
    assert both.probes.counters() - both.before == {Reason.NO_HEADROOM: 1}


def test_mutated_and_cut_frames(both: Both) -> None:
    """Any damage to a probe is judged the same by program and specification."""
    chance = random.Random(5447)  # noqa: S311 - reproducible, not secret
    good = [*OTHER_PROBES.values(), tcp("S"), tcp("PA", ip6(), data="hello")]
    for kind in ENCAPSULATIONS:
        both.use(kind)
        marks = [mark_of(both.ids[name]) for name in ("four1", "six1", "failed2")] + [
            mark_of(77),
            9,
        ]
        for _ in range(3000):
            frame = bytearray(chance.choice(good))
            for _ in range(chance.randint(0, 3)):
                at = chance.randrange(12, min(len(frame), 100))
                frame[at] = chance.choice([0, 1, 6, 0x11, 0x2C, 0x45, 0x60, chance.randrange(256)])
            if chance.random() < 0.2 and len(frame) > SHORTEST:
                frame = frame[: chance.randrange(SHORTEST, len(frame))]
            both.send(bytes(frame), mark=chance.choice(marks))
        assert set(both.counts) >= {
            Reason.NONE,
            Reason.BAD_LENGTH,
            Reason.FRAGMENT,
            Reason.NO_BACKEND,
        }


def test_the_limits_on_a_program_hold_for_it_too(both: Both) -> None:
    """What tc runs may take no more work and stack than what the driver runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "MOST_VERIFIED", 100)
        with pytest.raises(CompileError, match=r"healthcheck takes the verifier [\d,]+ instr"):
            Probes(BUILD, both.kernel.maps)
