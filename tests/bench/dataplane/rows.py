# SPDX-License-Identifier: Apache-2.0
"""The rows of the table: which frame, in which scene, and what has to become of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from bench.dataplane.programs import PADDING, Kind, Knobs
from support.documents.roster import VIP4, backend, desired, vip
from support.packets.frames import CLIENT4, ETHER, ip4, ip6, tcp, udp
from tidegate.model.decision import Decision
from tidegate.model.document_types import Tracking
from tidegate.model.values import Desired
from tidegate.spec import Verdict

UNTRACKED4, SIX4, SIX6 = "10.99.0.3", "10.99.0.4", "fd99::4"
SPREAD4: Final = "10.98.0.0"
"""First address of many VIPs."""
NO_LIMIT: Final = 1_000_000_000
"""New entries a second: what is measured is never the limit."""
MANY: Final = 900_000
OTHERS: Final = 1 << 21
"""First flow of those that are not established."""
EVERY: Final = 1 << 37
"""Flows that a wrapper can tell apart."""

_BESIDE: Final = (vip("web6", "fd99::1"), vip("dns4", VIP4, 53, "udp"))
"""Beside many VIPs, so that their program has the features of the other scenes'."""
_UP_TO_8: Final = {"goal": 8, "goal_all": 8}

USUAL: Final = ("empty loop", "LRU, 12-byte key", "adjust_head")
MEDIUM: Final = (*USUAL, "random line, 8 MB")
LARGE: Final = (*USUAL, "random line, 64 MB")


_SAME: Final = Knobs()


@dataclass(frozen=True)
class Scene:
    """Documents in force, and what is in the connection table before anything is measured.

    Attributes:
        is_large: the table has room for MANY flows.
        established: flows of which each has sent two packets.
        is_full: every place of the table is taken.
    """

    documents: Desired
    is_large: bool = False
    established: Knobs | None = None
    is_full: bool = False


@dataclass(frozen=True)
class Row:
    """A kind of packet.

    Attributes:
        decision: by which every packet is forwarded; None: every packet passes to the stack.
        inserts: every packet makes an entry in the connection table; else none does.
        knobs: which flows, where it is not the same packet each time.
        before: frames that are sent before each measurement, to establish what it is about.
        goal: ns, for the program built with what the documents need; `goal_all` with everything.
        yardstick: prices that its figure is compared with, on whatever machine.
    """

    name: str
    frame: bytes
    decision: Decision | None
    scene: str = "plain"
    kind: Kind = Kind.ONE
    inserts: bool = False
    knobs: Knobs = _SAME
    before: tuple[bytes, ...] = ()
    goal: float | None = None
    goal_all: float | None = None
    yardstick: tuple[str, ...] = USUAL

    @property
    def verdict(self) -> Verdict:
        """Return what the program has to return."""
        return Verdict.PASS if self.decision is None else Verdict.TX


def flows(vip_address: str = VIP4, first: int = 0, count: int = MANY, **knobs: bool) -> Knobs:
    """Return knobs for so many flows, in random order."""
    address = int(ip_address(vip_address))
    return Knobs(first=first, flows=count, vip=address, **{"is_random": True, **knobs})


def _plain(tracking: Tracking = "full", insert_limit: int = NO_LIMIT) -> Desired:
    four = [backend(f"b{i}") for i in range(1, 9)]
    six = [backend(f"b{i}", f"fd01::{i}", pool="six") for i in range(1, 9)]
    options = {"tracking": tracking, "insert_limit": insert_limit}
    vips = [
        vip("web4", VIP4, **options),
        vip("web6", "fd99::1", **options),
        vip("dns4", VIP4, 53, "udp"),
        vip("untracked4", UNTRACKED4, tracking="none"),
        vip("six4", SIX4, pool="six"),
        vip("six6", SIX6, pool="six"),
    ]
    return desired(vips, [*four, *six])


def _spread(count: int) -> Desired:
    """Return so many VIPs, nearly all with an IPv4 address of their own."""
    first = ip_address(SPREAD4)
    vips = [vip(f"v{i}", str(first + i)) for i in range(count - len(_BESIDE))]
    return desired([*vips, *_BESIDE], [backend(f"b{i}") for i in range(1, 9)])


def _to_each(vips: int) -> Knobs:
    """Return knobs for a flow to each of so many VIPs, but for those beside them."""
    return flows(SPREAD4, count=vips - len(_BESIDE), is_spread=True)


SCENES: Final[Mapping[str, Scene]] = {
    "plain": Scene(_plain()),
    "transition": Scene(_plain("transition")),
    "64 VIPs": Scene(_spread(64), established=_to_each(64)),
    "500 VIPs": Scene(_spread(500), established=_to_each(500)),
    "many": Scene(_plain(), is_large=True, established=flows()),
    "evicting": Scene(_plain(), is_large=True, is_full=True),
}


def _frame(*layers: Packet) -> bytes:
    frame = ETHER
    for layer in layers:
        frame /= layer
    return bytes(frame)


ACK, UNTRACKED = tcp("A"), tcp("A", ip4(to=UNTRACKED4))
PADDED = ACK + bytes(PADDING)
DATAGRAM = udp()
ACK6, FOUR_IN_SIX, SIX_IN_SIX = tcp("A", ip6()), tcp("A", ip4(to=SIX4)), tcp("A", ip6(to=SIX6))
SYN = tcp("S", sport=50_000)
ERROR = _frame(
    IP(src="10.0.0.254", dst=VIP4),
    ICMP(type=3, code=4, nexthopmtu=1400),
    Raw(bytes(IP(src=VIP4, dst=CLIENT4) / TCP(sport=80, dport=40_000, flags="A"))[:28]),
)
FIRST = _frame(ip4(id=77, flags="MF"), UDP(sport=40_000, dport=53, chksum=1), Raw(bytes(16)))
LATER = _frame(ip4(id=77, frag=3, proto=17), Raw(bytes(24)))


def _row(name: str, frame: bytes, decision: Decision | None, **rest: Any) -> Row:
    return Row(name=name, frame=frame, decision=decision, **rest)


def _tracked(name: str, frame: bytes, **rest: Any) -> Row:
    return _row(name, frame, Decision.TRACKED, before=(frame,), **rest)


def _many(name: str, count: int, **rest: Any) -> Row:
    knobs = flows(count=count)
    return _row(name, ACK, Decision.TRACKED, scene="many", kind=Kind.MANY, knobs=knobs, **rest)


def _vips(count: int, **rest: Any) -> Row:
    scene, knobs = f"{count} VIPs", _to_each(count)
    name = f"tracked, {scene}"
    return _row(name, ACK, Decision.TRACKED, scene=scene, kind=Kind.MANY, knobs=knobs, **rest)


ROWS: Final = (
    _tracked("v4 TCP, tracked", ACK, goal=50, goal_all=65),
    _tracked("the same, padded to 60 bytes", PADDED, kind=Kind.PADDED, goal=58),
    _tracked("v4 UDP, tracked", DATAGRAM, goal=55),
    _row("v4 TCP, no table: transition", ACK, Decision.CURRENT, scene="transition", goal=50),
    _row("v4 TCP, no table: none", UNTRACKED, Decision.CURRENT, goal=50),
    _tracked("v6 TCP, tracked", ACK6, goal=58),
    _tracked("v4 in v6, tracked", FOUR_IN_SIX, goal=52),
    _tracked("v6 in v6, tracked", SIX_IN_SIX, goal=58),
    _row("SYN, steady", SYN, Decision.SYN, goal=55),
    _row(
        "SYN flood, 900,000 sources",
        tcp("S"),
        Decision.SYN,
        scene="many",
        kind=Kind.MANY,
        knobs=flows(first=OTHERS),
        goal=60,
    ),
    _row(
        "a new flow with each packet",
        ACK,
        Decision.CURRENT,
        scene="evicting",
        kind=Kind.MANY,
        inserts=True,
        knobs=flows(count=EVERY, is_random=False),
        goal=180,
        yardstick=LARGE,
    ),
    _row("not a VIP, v4", tcp("A", ip4(to="10.99.0.200")), None, kind=Kind.BARE, **_UP_TO_8),
    _row("not a VIP, v6", tcp("A", ip6(to="fd99::200")), None, kind=Kind.BARE, **_UP_TO_8),
    _many("tracked, 1,000 flows", 1_000, goal=60),
    _many("tracked, 100,000 flows", 100_000, goal=120, yardstick=MEDIUM),
    _many("tracked, 900,000 flows", MANY, goal=160, yardstick=LARGE),
    _row(
        "no table, 900,000 flows",
        ACK,
        Decision.CURRENT,
        scene="transition",
        kind=Kind.MANY,
        knobs=flows(),
        goal=55,
    ),
    _vips(64, goal=55),
    _vips(500, goal=65),
    _row("ICMP error", ERROR, Decision.ERROR, before=(ACK,), goal=95),
    _tracked("first fragment", FIRST, goal=220),
    _row("later fragment", LATER, Decision.FRAGMENT, before=(DATAGRAM, FIRST), goal=95),
)
