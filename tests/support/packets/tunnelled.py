# SPDX-License-Identifier: Apache-2.0
"""Tunnelled frames for bpf/decap.c, and the program beside its specification."""

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.tunnel.tunnel import Decap
from tidegate.spec.balancer import Verdict
from tidegate.spec.decap import ANYTHING, Accept, Outcome, process

MACS = {"src": "02:00:00:00:00:01", "dst": "02:00:00:00:00:b1"}
ETHER = Ether(**MACS)
HERE4, HERE6 = "10.77.101.2", "fd77:0:0:65::2"
FROM4, FROM6 = "10.254.3.7", "fd54::77"
STRICT = Accept(
    addresses=frozenset({ip_address(HERE4), ip_address(HERE6)}),
    sources=(ip_network("10.254.0.0/16"), ip_network("192.0.2.5/32"), ip_network("fd54::/64")),
)


@dataclass
class Both:
    """The program and the specification with the same settings."""

    accept: Accept
    kernel: Decap
    counts: Counter[Outcome] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.before = self.kernel.counters()

    def send(self, frame: bytes) -> tuple[Verdict, bytes]:
        """Send a frame through both and return the result, which must be the same."""
        expected = process(self.accept, self.counts, frame)
        result = bpf.run(self.kernel.program, frame)
        assert (result.verdict, result.frame) == expected, frame.hex()
        return expected

    def check(self) -> Counter[Outcome]:
        """Return what was counted, which must be the same."""
        assert self.kernel.counters() - self.before == self.counts
        return self.counts


SETTINGS = {
    "anything": ANYTHING,
    "strict": STRICT,
    "no GUE": Accept(gue_port=0),
    "GUE elsewhere": Accept(gue_port=5555),
}


def outer(version: int, **fields: Any) -> Any:
    """Return a load balancer's outer header; `proto`, `tos` and `source` for either version."""
    source = fields.pop("source", FROM4 if version == 4 else FROM6)
    to = fields.pop("to", HERE4 if version == 4 else HERE6)
    if version == 4:
        return IP(src=source, dst=to, flags=fields.pop("flags", "DF"), **fields)
    names = {"proto": "nh", "tos": "tc", "len": "plen"}
    return IPv6(src=source, dst=to, **{names.get(k, k): v for k, v in fields.items()})


def inner(version: int, data: str = "hello", **fields: Any) -> Any:
    """Return a client's packet to the VIP."""
    if version == 4:
        ip = IP(src="10.77.11.2", dst="10.99.0.1", **fields)
    else:
        names = {"tos": "tc", "len": "plen"}
        six = {names.get(k, k): v for k, v in fields.items()}
        ip = IPv6(src="fd77:0:0:b::2", dst="fd99::1", **six)
    return ip / TCP(sport=40000, dport=80, flags="PA") / data


def tunnelled(over: int, packet: Any, ether: Any = ETHER, **fields: Any) -> bytes:
    """Return a frame in IP in IP."""
    proto = 4 if isinstance(packet, IP) else 41
    return bytes(ether / outer(over, **{"proto": proto, **fields}) / bytes(packet))


def gue(over: int, packet: Any, ether: Any = ETHER, port: int = 6080, **udp: Any) -> bytes:
    """Return a frame in GUE variant 1, with a right UDP checksum unless one is given."""
    header = UDP(sport=50123, dport=port, **udp)
    return bytes(ether / outer(over) / header / bytes(packet))


KINDS = {
    Outcome.IPIP: tunnelled(4, inner(4)),
    Outcome.SIX_IN_FOUR: tunnelled(4, inner(6)),
    Outcome.FOUR_IN_SIX: tunnelled(6, inner(4)),
    Outcome.SIX_IN_SIX: tunnelled(6, inner(6)),
    Outcome.GUE_OVER_FOUR: gue(4, inner(4)),
    Outcome.GUE_OVER_SIX: gue(6, inner(6)),
}
"""One frame of each kind that is taken out."""


TAGGED = {
    "802.1Q": Ether(**MACS) / Dot1Q(vlan=5),
    "802.1ad and 802.1Q": Ether(**MACS) / Dot1AD(vlan=7) / Dot1Q(vlan=5),
    "802.1Q twice": Ether(**MACS) / Dot1Q(vlan=7) / Dot1Q(vlan=5),
}
