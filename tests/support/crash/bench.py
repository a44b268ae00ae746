# SPDX-License-Identifier: Apache-2.0
"""A pinned data plane that outlives the processes that publish to it, and what its packets do.

A driver is a forked child that opens the pins as an agent does, publishes, and kills itself with
SIGKILL at a step. The parent stays outside: it runs packets through the program and reads the maps.
"""

import os
import resource
import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from support.documents.roster import backend, desired, vip
from support.packets.frames import CLIENT4, CLIENT6, ip4, ip6, tcp, udp
from support.packets.kernel import BUILD, empty
from tidegate.dataplane import links
from tidegate.dataplane.kernel import layout, maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish import ledger, tables
from tidegate.dataplane.publish.mirror import KEYED, Mirror
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step
from tidegate.model.generation import Generation
from tidegate.model.values import Desired, Quic, SourceRoute, Vip
from tidegate.spec import Link, Verdict

FLOWS = 48
"""Flows of a VIP that are established, and SYNs that probe its table."""
SMALL = maps.Capacity(flows=8192, syns=8192, fragments=1024)
LOOPBACK = links.of_spec(
    "lo", 1, Link(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x04", b"\x02\0\0\0\0\x06", 1500)
)
_MAP_FD_BY_ID = 14
OF_VIPS = ("vips", "vip_image", "vip_addresses")
EMPTIED = (*KEYED, *OF_VIPS, "backends", "outer")
ESTABLISHED, NEW = 20_000, 30_000
"""First source ports."""

Place = tuple[str, int]


class Killed(NamedTuple):
    """How a driver ended: the steps that it reached, and the maps that it had open at the end."""

    steps: Counter[Step]
    map_ids: set[int]


def fork(work: Callable[[Callable[[Step], None]], None], at: Step | None, hit: int = 1) -> Killed:
    """Run work in a child that kills itself when it reaches a step for the n-th time.

    Without a step it runs to its end. The work is given the hook for its publisher.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(work, writer, at, hit)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    failed = [line for line in lines if line.startswith("error ")]
    assert not failed, failed
    steps = Counter(Step[line.split()[1]] for line in lines if line.startswith("step "))
    if at is not None and steps[at] >= hit:
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert status == 0
    held = {int(i) for line in lines if line.startswith("maps") for i in line.split()[1:]}
    return Killed(steps, held)


def _child(
    work: Callable[[Callable[[Step], None]], None], pipe: int, at: Step | None, hit: int
) -> None:
    seen: Counter[Step] = Counter()

    def reached(step: Step) -> None:
        seen[step] += 1
        os.write(pipe, f"step {step.name}\n".encode())
        if step is at and seen[step] == hit:
            os.write(pipe, f"maps {' '.join(map(str, open_maps()))}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        work(reached)
        code = 0
    except BaseException as error:  # noqa: BLE001 - the parent reports it
        os.write(pipe, f"error {type(error).__name__} {error}".replace("\n", " ").encode())
    finally:
        os._exit(code)


def open_maps() -> set[int]:
    """Return kernel ids of the maps that this process has open."""
    found = set()
    for path in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue  # the descriptor of this listing
        found |= {int(line.split()[1]) for line in lines if line.startswith("map_id:")}
    return found


def is_alive(map_id: int) -> bool:
    """Return whether the kernel still has a map of this id."""
    try:
        fd, _ = bpf._bpf(_MAP_FD_BY_ID, map_id.to_bytes(4, "little"))
    except FileNotFoundError:
        return False
    os.close(fd)
    return True


@cache
def _frame(vip: Vip, port: int, kind: str) -> bytes:
    """Return a client's frame to a VIP, or to the first address of one that is a network."""
    to = str(vip.address)
    header = ip6(CLIENT6, to) if vip.address.version == 6 else ip4(CLIENT4, to)
    if vip.protocol == "udp":
        return udp(header, sport=port, dport=vip.port)
    return tcp(kind, header, sport=port, dport=vip.port or 80)


class Packets:
    """What the program does with packets, by names of backends."""

    def __init__(self, program: int, *rosters: Generation) -> None:
        self._program = program
        self._names = {
            placed.backend.address: key.name
            for roster in rosters
            for key, placed in roster.backends.items()
        }

    def send(self, vip: Vip, port: int, kind: str) -> str | None:
        """Send a frame; return the name of its backend; None if it does not leave."""
        result = bpf.run(self._program, _frame(vip, port, kind))
        if result.verdict != Verdict.TX:
            return None
        outer = result.frame[14:]
        address = outer[24:40] if outer[0] >> 4 == 6 else outer[16:20]
        return self._names[ip_address(address)]

    def establish(self, vips: dict[str, Vip]) -> dict[Place, str | None]:
        """Open flows to each VIP; return where they went."""
        for service in vips.values():
            for i in range(FLOWS):
                self.send(service, ESTABLISHED + i, "S")
        return self.established(vips)

    def established(self, vips: dict[str, Vip]) -> dict[Place, str | None]:
        """Return where a packet of each open flow goes now."""
        return {
            (name, i): self.send(service, ESTABLISHED + i, "A")
            for name, service in vips.items()
            for i in range(FLOWS)
        }

    def table(self, vip: Vip) -> list[str | None]:
        """Return where new flows go: the VIP's table, as far as so many ports show it."""
        return [self.send(vip, NEW + i, "S") for i in range(FLOWS)]


def contents(fds: maps.Maps, pins: Path) -> dict[str, Any]:
    """Return all in the kernel that must be equal however a generation came into force.

    Left out are numbers of generations, which attempts use up, and the endpoint of a backend that
    is not selected.
    """
    mirror = Mirror(fds, pins)
    mirror.load(strict=True)
    found: dict[str, Any] = {name: mirror.written[name] for name in ("prefixes", "routes")}
    found["vips"], found["addresses"] = mirror.images.in_force, mirror.images.bits
    found["quic_servers"] = mirror.written["quic_servers"]
    found["records"] = {p: r for p, r in mirror.records.items() if p.kind is not ledger.Kind.META}
    used = np.flatnonzero(mirror.entries["incarnation"])
    found["entries"] = {int(i): _entry(mirror.entries[i]) for i in used}
    found["tables"] = {}
    pools = {p.id: r.name for p, r in mirror.records.items() if isinstance(r, ledger.PoolRecord)}
    for path in sorted((pins / "tables").iterdir()):
        fd = bpf.open_pin(str(path))
        table = tables.read(fd)
        pool = int(path.name.split("-")[0])
        assert tables.slots(fds["outer"])[pool] == tables.id_of(fd)
        os.close(fd)
        assert pool not in found["tables"]
        arrays = (table.current, table.fallback, table.window, table.tracked)
        closes = [window.closes_at for window in table.windows]
        found["tables"][pool] = (pools[pool], *(a.tobytes() for a in arrays), closes)
    assert set(tables.slots(fds["outer"])) == set(found["tables"])
    return found


def _entry(entry: np.void) -> tuple[object, ...]:
    endpoint = entry["endpoints"][int(entry["selected"])]
    fields = ("incarnation", "flags", "gue_port", "mtu")
    return (*(int(entry[f]) for f in fields), bytes(endpoint["address"]), int(endpoint["family"]))


def wait_gone(map_ids: set[int], seconds: float = 10) -> set[int]:
    """Wait for the kernel to free maps of these ids; return those that are left."""
    limit = time.monotonic() + seconds
    left = {i for i in map_ids if is_alive(i)}
    while left and time.monotonic() < limit:
        time.sleep(0.01)
        left = {i for i in left if is_alive(i)}
    return left


def link_loopback(fds: maps.Maps) -> None:
    """Give test runs an interface with gateways."""
    links.write(fds["links"], LOOPBACK)


def number(fds: maps.Maps, pins: Path) -> int:
    """Return the number that an agent which starts now would continue from."""
    publisher = Publisher(fds, pins, grace=0)
    found = publisher.adopt().number
    publisher.close()
    return found


def empty_folder(pins: Path) -> None:
    """Remove a folder of pins."""
    shutil.rmtree(pins, ignore_errors=True)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let the kernel refuse every new descriptor to this process, and so every new map."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def everything() -> Desired:
    """Return two pools, and VIPs of both families and protocols, with a network, all modes."""
    vips = [
        vip("web4", "192.0.2.1", tracking="transition"),
        vip("web6", "2001:db8::1"),
        vip("dns", "192.0.2.1", 53, "udp"),
        vip("api", "192.0.2.2", pool="api"),
        vip("quic", "192.0.2.3", 443, "udp", "api", quic=Quic(2)),
        vip("net", "198.18.0.0/24", source_routes=(SourceRoute(ip_network("10.0.0.0/8"), "web"),)),
    ]
    servers = [backend(f"b{i}", f"203.0.113.{i}") for i in range(1, 5)]
    servers += [
        backend(f"a{i}", f"2001:db8:2::{i}", pool="api", quic_server_id=bytes([0, i]))
        for i in range(1, 4)
    ]
    return desired(vips, servers)


class Bench:
    """Pinned maps with a loaded program, emptied before each case."""

    def __init__(self) -> None:
        self.pins = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
        make_plane_folder(self.pins)
        self.maps, _ = maps.create_or_adopt(self.pins, SMALL)
        build = replace(BUILD, capacity=SMALL)
        self.program = programs.load_balancer(programs.compile_balancer(build), self.maps)

    def publisher(self) -> Publisher:
        """Return a publisher in this process."""
        return Publisher(self.maps, self.pins, grace=0)

    def start(self, first: Generation) -> Publisher:
        """Empty the maps and publish a generation to them."""
        shapes = maps.shapes(SMALL)
        for name in EMPTIED:
            empty(self.maps[name], shapes[name])
        for name, pairs in SMALL.pairs.items():
            with MappedLines(self.maps[name], pairs, writable=True) as table:
                table.lines[:] = np.zeros((), layout.LINE)
        for path in (self.pins / "tables").iterdir():
            path.unlink()
        link_loopback(self.maps)
        publisher = self.publisher()
        publisher.publish(first, 0.0)
        return publisher

    def close(self) -> None:
        """Remove the pins."""
        os.close(self.program)
        self.maps.close()
        empty_folder(self.pins)
