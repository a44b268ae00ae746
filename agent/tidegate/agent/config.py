# SPDX-License-Identifier: Apache-2.0
"""The agent's file: TOML, every key typed, unknown keys refused by name."""

import re
import socket
import tomllib
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from tidegate.dataplane.kernel.maps import Capacity
from tidegate.dataplane.kernel.programs import Build
from tidegate.dataplane.links import Gateways
from tidegate.errors import ConfigError
from tidegate.event_log import EventLog
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.settings import check as check_etcd
from tidegate.model.document_types import Percent
from tidegate.planner.guards import Limits
from tidegate.telemetry.export.settings import TelemetrySettings
from tidegate.telemetry.export.settings import check as check_telemetry
from tidegate.telemetry.log_format import Format
from tidegate.telemetry.metrics import endpoint

log = EventLog(__name__)

_NAME: Final = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
_LONGEST_SOCKET: Final = 90
"""Bytes; the kernel takes 107 (unix(7)), and the socket is first made under a longer name."""
_OWN_TABLES: Final = (253, 254, 255)
"""default, main and local: a blackhole there would take this host's own packets."""
Name = Annotated[str, Meta(pattern=_NAME)]


MacAddress = Annotated[str, Meta(pattern=r"^([0-9a-f][02468ace])(:[0-9a-f]{2}){5}$")]
"""Of a unicast address, in lower case."""


class Encapsulation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Outer sources: a network whose host bits come from the flow hash, or one address."""

    source4: IPv4Network
    source6: IPv6Network


class GatewayTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Next hops for encapsulated packets, where they are not those of the routes to the backends.

    Attributes:
        ipv4: may be an IPv6 address (RFC 8950), such as a link-local one.
    """

    ipv4: str | None = None  # msgspec has no unions of types that it does not know
    ipv6: IPv6Address | None = None


class CapacityTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Entries of the tables of flows; after a change, a restart takes the flows along.

    Attributes:
        events: bytes of the ring buffer of events, a power of two.
    """

    flows: Annotated[int, Meta(ge=1024, le=1 << 27)] = 1 << 20
    syns: Annotated[int, Meta(ge=1024, le=1 << 24)] = 1 << 16
    fragments: Annotated[int, Meta(ge=1024, le=1 << 24)] = 1 << 14
    events: Annotated[int, Meta(ge=1 << 16, le=1 << 28)] = 1 << 20


class JournalTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of the past is kept in `state_dir`; the journal ends at whichever comes first.

    Attributes:
        generations: the last ones; a few more are there until a whole segment can go.
        bytes: of all files of the journal.
    """

    generations: Annotated[int, Meta(ge=10, le=100_000)] = 1000
    bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 34)] = 64 << 20


class Guards(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much one change may take away, in percent; docs/guards.md."""

    max_backends_removed_percent: Percent = 50
    max_vips_removed_percent: Percent = 50


class HealthTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What health checks may do on this host; the checks themselves are in the pools' documents."""

    allow_exec: bool = False


class AnnounceTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a routing daemon of this host learns which VIPs to announce; docs/announce.md.

    Attributes:
        table: of the kernel's routing tables; while ready it has one route for each VIP address. 0
            announces nothing.
        exabgp_pipe: named pipe that ExaBGP's process reads commands from; empty for no pipe.
        hold: seconds for which a host may be not ready before its routes go.
        withdraw_on_stop: whether they go when the agent is asked to end.
        drain: seconds for which it then goes on, for routers to follow.
    """

    table: Annotated[int, Meta(ge=0, le=(1 << 32) - 1)] = 0
    exabgp_pipe: str = ""
    hold: Annotated[float, Meta(ge=0, le=3600)] = 3.0
    withdraw_on_stop: bool = True
    drain: Annotated[float, Meta(ge=0, le=3600)] = 5.0


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Settings of one agent; only `interfaces` and `encapsulation` have no default.

    Attributes:
        release: followed where no track's key names one.
        track: of the host, unless its key in etcd has one; by default `stable`.
        xdp_mode: native, generic, or auto (native, and generic where the driver refuses).
        hash_seed: key of the flow hash where a release has none; by default a secret that agents
            make and share in etcd, and the fleet's name until that has been read. It must be equal
            on every host of a fleet; changing it moves flows that are not tracked.
        grace_delay: seconds for which a replaced table stays loaded.
        audit_interval: seconds between full comparisons of the kernel with what it has to hold.
        confirm_delay: seconds after which an answer of etcd confirms a change of VIPs; without one
            the host goes back to the VIPs before; 0 never does.
        control_socket: Unix socket on which operators of this host talk to the agent.
        state_dir: folder for what the agent keeps on disk: its journal.
        rollback_depth: generations with documents of their own that `tidegate rollback` can go
            back to.
        probe_tunnel: whether marked connections of this host to a VIP go through the tunnel to the
            backend that the mark names also where no pool has a health check.
        mac_addresses: beside the interfaces' own, whose frames are taken (docs/network.md).
        merging_off: whether NICs are told not to merge packets (LRO, rx-gro-hw); docs/network.md.
        ready_file: a file that exists while the host is ready; empty for no file.
        ready_when_blind: whether a host stays ready that finds many backends dead which most hosts
            reach; docs/announce.md.
        log_format: of lines on stderr: key=value, or JSON.
        ready_stale_limit: seconds without etcd after which the host is not ready; unset for never.
    """

    host: Name = msgspec.field(default_factory=socket.gethostname)
    fleet: Name = "default"
    release: Name = "live"
    track: Name | None = None
    interfaces: Annotated[tuple[str, ...], Meta(min_length=1)]
    xdp_mode: Literal["native", "generic", "auto"] = "native"
    pin_dir: str = "/sys/fs/bpf/tidegate"
    hash_seed: str = ""
    control_socket: str = "/run/tidegate/agent.sock"
    state_dir: str = "/var/lib/tidegate"
    rollback_depth: Annotated[int, Meta(ge=1, le=100)] = 10
    grace_delay: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    audit_interval: Annotated[float, Meta(ge=1, le=3600)] = 60.0
    confirm_delay: Annotated[float, Meta(ge=0, le=600)] = 10.0
    probe_tunnel: bool = False
    merging_off: bool = True
    mac_addresses: Annotated[tuple[MacAddress, ...], Meta(max_length=4)] = ()
    ready_file: str = ""
    ready_when_blind: bool = True
    ready_stale_limit: Annotated[float, Meta(ge=0)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Format = "text"
    etcd: EtcdSettings = msgspec.field(default_factory=EtcdSettings)
    encapsulation: Encapsulation
    gateway: GatewayTable = GatewayTable()
    capacity: CapacityTable = CapacityTable()
    guards: Guards = Guards()
    health: HealthTable = HealthTable()
    journal: JournalTable = JournalTable()
    announce: AnnounceTable = AnnounceTable()
    telemetry: TelemetrySettings = TelemetrySettings()

    def build(self) -> Build:
        """Return what the balancer is compiled with."""
        sizes = self.capacity
        return Build(
            hash_seed=(self.hash_seed or self.fleet).encode(),
            source4=self.encapsulation.source4,
            source6=self.encapsulation.source6,
            capacity=Capacity(sizes.flows, sizes.syns, sizes.fragments, sizes.events),
        )

    def limits(self) -> Limits:
        """Return what guards hold changes to."""
        guards = self.guards
        return Limits(guards.max_backends_removed_percent, guards.max_vips_removed_percent)

    def macs(self) -> tuple[bytes, ...]:
        """Return the MAC addresses whose frames are taken beside the interfaces' own."""
        return tuple(bytes.fromhex(each.replace(":", "")) for each in self.mac_addresses)

    def gateways(self) -> Gateways:
        """Return the next hops that the file names."""
        ipv4 = self.gateway.ipv4
        return Gateways(ip_address(ipv4) if ipv4 else None, self.gateway.ipv6)


@dataclass(frozen=True)
class Changes:
    """Which keys differ between two files, and which of them take a restart."""

    reloadable: tuple[str, ...]
    fixed: tuple[str, ...]


_RELOADABLE: Final = ("guards", "gateway", "grace_delay", "audit_interval", "log_level")


def changes(before: AgentConfig, after: AgentConfig) -> Changes:
    """Return what a reload would change."""
    names = [f for f in before.__struct_fields__ if getattr(before, f) != getattr(after, f)]
    return Changes(
        tuple(name for name in names if name in _RELOADABLE),
        tuple(name for name in names if name not in _RELOADABLE),
    )


def merged(before: AgentConfig, after: AgentConfig, names: tuple[str, ...]) -> AgentConfig:
    """Return the settings before, with these keys as they are after."""
    return msgspec.structs.replace(before, **{name: getattr(after, name) for name in names})


def read(path: Path) -> AgentConfig:
    """Read and check the agent's file.

    Raises:
        ConfigError: naming the file, the key and what is wrong with it.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        config = msgspec.convert(tree, AgentConfig, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(str(error))}") from error
    _check(path, config)
    return config


def reloaded(path: Path, config: AgentConfig) -> AgentConfig | None:
    """Return the settings after reading the file again; None if it cannot be used.

    What cannot change while the agent runs is logged, and stays.
    """
    try:
        fresh = read(path)
    except ConfigError as error:
        log.error("reload_refused", reason=f"{error}; the old settings stay")
        return None
    found = changes(config, fresh)
    if found.fixed:
        log.warning("restart_needed", keys=found.fixed)
    return merged(config, fresh, found.reloadable)


def _decode(kind: type, value: object) -> Any:  # noqa: ANN401 - msgspec's hook has this signature
    if kind in (IPv4Network, IPv6Network, IPv6Address) and isinstance(value, str):
        try:
            return kind(value)
        except (AddressValueError, ValueError) as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"expected {kind.__name__}, got {value!r}")


def _sentence(message: str) -> str:
    """Return msgspec's message, key first: `etcd.endpoints[0]: expected str, got int`."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    return f"{match[2] or 'top level'}: {match[1]}" if match else message


def _check(path: Path, config: AgentConfig) -> None:
    if config.encapsulation.source6.prefixlen < 64:  # noqa: PLR2004 - the hash has 64 bits
        raise ConfigError(
            f"{path}: encapsulation.source6: the prefix must be /64 or longer, "
            f"got {config.encapsulation.source6}"
        )
    if len(set(config.interfaces)) != len(config.interfaces):
        raise ConfigError(f"{path}: interfaces: an interface is named twice: {config.interfaces}")
    for key in ("pin_dir", "control_socket", "state_dir"):
        place: str = getattr(config, key)
        if not place.startswith("/"):
            raise ConfigError(f"{path}: {key}: must be an absolute path, got {place!r}")
    _check_announce(path, config)
    if len(config.control_socket.encode()) > _LONGEST_SOCKET:
        raise ConfigError(
            f"{path}: control_socket: a socket's path has at most {_LONGEST_SOCKET} bytes, "
            f"got {len(config.control_socket.encode())}"
        )
    if "." in config.pin_dir:
        raise ConfigError(
            f"{path}: pin_dir: the BPF file system refuses names with dots, got {config.pin_dir!r}"
        )
    try:
        config.gateways()
    except ValueError as error:
        raise ConfigError(f"{path}: gateway.ipv4: {error}") from error
    if config.capacity.events & (config.capacity.events - 1):
        raise ConfigError(
            f"{path}: capacity.events: must be a power of two (bytes; 1048576 is 1 MiB), "
            f"got {config.capacity.events}"
        )
    try:
        check_etcd(config.etcd)
        endpoint.place(config.telemetry.prometheus)
        check_telemetry(config.telemetry)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_announce(path: Path, config: AgentConfig) -> None:
    pipe = config.announce.exabgp_pipe
    for key, place in (("ready_file", config.ready_file), ("announce.exabgp_pipe", pipe)):
        if place and not place.startswith("/"):
            raise ConfigError(f"{path}: {key}: must be an absolute path, got {place!r}")
    if config.announce.table in _OWN_TABLES:
        raise ConfigError(
            f"{path}: announce.table: {config.announce.table} is one of the tables that the kernel "
            "looks up for its own packets (253 to 255); give a number of its own, such as 84"
        )
