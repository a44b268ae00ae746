# SPDX-License-Identifier: Apache-2.0
"""What is probed for a generation, and how: pure; each probe is a value until it is begun.

A backend is probed once, however many VIPs share its pool: through one VIP of the pool, the first
by name that speaks the check's protocol. What is sent to no VIP's address and port would not take
the tunnel (bpf/healthcheck.c), so such a check is not made, and the reason is reported.
"""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from tidegate.health import command, datagram, grpc_health, http
from tidegate.health.engine import Target
from tidegate.health.handshakes import Handshake
from tidegate.health.result import Result
from tidegate.health.standing import Rules
from tidegate.health.tcp import Destination
from tidegate.model.checks import Check, CheckType
from tidegate.model.document_types import Protocol
from tidegate.model.generation import Generation, PlacedBackend
from tidegate.model.values import BackendKey, Vip
from tidegate.spec.healthcheck import mark_of

_PROTOCOLS: Final[dict[CheckType, Protocol]] = {"udp": "udp", "dns": "udp"}
"""Protocol of each type's packets, where it is not TCP."""
_DESCRIPTORS: Final[dict[CheckType, int]] = {"exec": command.DESCRIPTORS}
"""How many each type has open at once, where it is not one socket."""
_IPV6: Final = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe by a coroutine, to be begun again and again. Equal probes are one."""

    destination: Destination
    check: Check
    backend: str

    def __call__(self) -> Awaitable[Result]:
        """Begin the probe."""
        to, check, limit = self.destination, self.check, self.check.timeout
        host = check.host or to.address
        match check.type:
            case "http" | "https":
                ask = http.Ask(
                    host=host,
                    path=check.path,
                    status=tuple(_span(text) for text in check.status),
                    body=check.body,
                    tls=check.type == "https",
                    verify=check.verify,
                )
                return http.get(to, ask, limit)
            case "udp":
                return datagram.ask(to, check.send.encode(), check.expect.encode(), limit)
            case "dns":
                return datagram.resolve(to, check.query, check.query_type, limit)
            case "grpc":
                service = grpc_health.Ask(check.service, host, tls=check.tls, verify=check.verify)
                return grpc_health.check(to, service, limit)
            case "exec":
                return command.run(to, check.command, self.backend, limit)
            case "tcp":
                raise AssertionError("a handshake is not a coroutine: see Handshake")


class Plan(NamedTuple):
    """What a generation wants probed.

    Attributes:
        targets: by backend.
        rules: when a backend's state changes.
        unprobed: backends that have a check which cannot be made, each with a sentence.
    """

    targets: Mapping[BackendKey, Target]
    rules: Mapping[BackendKey, Rules]
    unprobed: Mapping[BackendKey, str]


def targets(generation: Generation, *, allow_exec: bool) -> Plan:
    """Return what is to be probed while this generation is in force.

    Args:
        generation: VIPs, pools and backends, those that leave among them: they have flows.
        allow_exec: whether checks may run programs.
    """
    vips = [placed.vip for _, placed in sorted(generation.vips.items())]
    wanted: dict[BackendKey, Target] = {}
    rules: dict[BackendKey, Rules] = {}
    unprobed: dict[BackendKey, str] = {}
    through: dict[str, Destination | str] = {}
    for key, placed in generation.backends.items():
        pool = generation.pools.get(key.pool)
        health = pool.pool.health if pool else None
        if health is None or health.check is None:
            continue
        check = health.check
        if key.pool not in through:
            through[key.pool] = _way(check, key.pool, vips, allow_exec=allow_exec)
        way = through[key.pool]
        if isinstance(way, str):
            unprobed[key] = way
            continue
        to = _to(way, placed)
        wanted[key] = Target(
            _probe(to, check, key),
            check.interval,
            check.jitter_percent / 100,
            # A program that is a check makes connections of its own, if any.
            mark=0 if check.type == "exec" else to.mark,
            descriptors=_DESCRIPTORS.get(check.type, 1),
        )
        rules[key] = Rules(check.rise, check.fall, float(health.hold_down))
    return Plan(wanted, rules, unprobed)


def _probe(to: Destination, check: Check, key: BackendKey) -> Probe | Handshake:
    return Handshake(to, check.timeout) if check.type == "tcp" else Probe(to, check, str(key))


def _to(way: Destination, placed: PlacedBackend) -> Destination:
    return replace(way, mark=mark_of(placed.identity.id))


def _way(check: Check, pool: str, vips: list[Vip], *, allow_exec: bool) -> Destination | str:
    """Return where a pool's probes are sent, without their mark, or why they cannot be."""
    if check.type == "exec" and not allow_exec:
        return "The agent's file does not allow checks that run programs (health.allow_exec)."
    protocol = _PROTOCOLS.get(check.type, "tcp")
    using = [vip for vip in vips if pool in vip.pools and vip.protocol == protocol]
    if not using:
        return f"No VIP of protocol {protocol} uses the pool {pool}, so its check has no way."
    for vip in using:
        port = check.port or vip.port
        if port and _has_vip(vips, vip, port):
            source = check.source6 if vip.network.version == _IPV6 else check.source4
            return Destination(str(vip.address), port, 0, source, check.packet_size)
    if check.port is None:
        return f"The VIP {using[0].name} has any port, so the check of {pool} must name one."
    return f"No VIP has the address of {using[0].name} and port {check.port}, which is probed."


def _has_vip(vips: list[Vip], through: Vip, port: int) -> bool:
    """Return whether a packet to this VIP's address and this port is for a VIP."""
    return any(
        vip.protocol == through.protocol
        and vip.port in (0, port)
        and vip.network.version == through.network.version
        and through.address in vip.network
        for vip in vips
    )


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)
