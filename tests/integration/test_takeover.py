# SPDX-License-Identifier: Apache-2.0
"""A data plane of another size or version is taken over: no flow moves, and no packet is lost."""

import os
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, Self

import numpy as np
import pytest
from pyroute2 import IPRoute

from support.crash.bench import FLOWS, SMALL, link_loopback
from support.crash.host import Host, assert_flows_stay, packets_of, publish
from support.documents.roster import backend, desired, vip
from support.packets.frames import CLIENT4, CLIENT6, ip4, tcp
from tidegate.dataplane import plane as dataplane
from tidegate.dataplane.kernel import layout, maps
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.maps import Shape
from tidegate.dataplane.kernel.pins import pinned_programs
from tidegate.dataplane.takeover.hashed import FLOW, FLOW_KEY
from tidegate.errors import DataplaneError
from tidegate.lab import netns
from tidegate.model.address import packed
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Desired

pytestmark = pytest.mark.root

_SO_RCVBUFFORCE: Final = 33
"""socket(7), for which Python has no name."""
IP_IN_IP: Final = 4
LARGER = maps.Capacity(flows=20_000, syns=SMALL.syns, fragments=2048)
SMALLER = maps.Capacity(flows=5000, syns=1024, fragments=1024)
OTHERS = maps.Capacity(SMALL.flows, 4096, 2048, events=1 << 16)
VIPS = [vip("four", "192.0.2.1"), vip("six", "2001:db8::1"), vip("dns", "192.0.2.1", 53, "udp")]


def roster(*names: str, vips: list = VIPS) -> Desired:
    """Return backends without a transition: only entries keep a flow where it is."""
    return desired(vips, [backend(name) for name in names], window=0)


BEFORE, AFTER = roster("b1", "b2"), roster("b1", "b3", "b4", "b5")


@pytest.fixture
def host() -> Iterator[Host]:
    built = Host()
    yield built
    built.close()


class Opened:
    """A data plane that has flows: the generation that they began in, and where they went."""

    def __init__(self, host: Host, wanted: Desired) -> None:
        with netns.entered(host.name):
            plane = host.open()
            publish(plane, wanted)
            link_loopback(plane._maps)
            self.generation: Generation = plane.publisher.in_force
            plane.close()
        self.vips = {name: placed.vip for name, placed in self.generation.vips.items()}
        self.flows = packets_of(host, self.generation).establish(self.vips)


def reopened(host: Host, capacity: maps.Capacity, wanted: Desired) -> Generation:
    """Open the data plane as the next agent does, and publish."""
    with netns.entered(host.name):
        plane = host.open(capacity=capacity)
        publish(plane, wanted)
        generation = plane.publisher.in_force
        assert plane.audit(deep=True) == []
        plane.close()
    return generation


def assert_is_whole(host: Host, capacity: maps.Capacity) -> None:
    """What is pinned has the shapes that are wanted, one program runs, and nothing is left over."""
    for name, shape in maps.shapes(capacity).items():
        fd = bpf.open_pin(str(host.pins / name))
        assert maps.shape_of(fd) == shape, name
        os.close(fd)
    assert pinned_programs(host.pins) == {host.attached()}
    assert {path.name for path in host.pins.iterdir()} == {
        "program",
        "tables",
        *maps.shapes(capacity),
    }


@pytest.mark.parametrize("capacity", [LARGER, SMALLER, OTHERS], ids=["larger", "smaller", "others"])
def test_flows_outlive_a_change_of_capacity(host: Host, capacity: maps.Capacity) -> None:
    """The roster is changed right after, so that only their entries keep them; and back again."""
    opened = Opened(host, BEFORE)
    new = reopened(host, capacity, AFTER)
    assert_is_whole(host, capacity)
    assert_flows_stay(host, opened.generation, new, opened.vips, opened.flows)
    packets = packets_of(host, opened.generation, new)
    fresh = {(n, i): b for n, v in opened.vips.items() for i, b in enumerate(packets.table(v))}
    assert sum(fresh[place] != there for place, there in opened.flows.items()) > FLOWS
    back = reopened(host, SMALL, AFTER)
    assert_is_whole(host, SMALL)
    assert_flows_stay(host, opened.generation, back, opened.vips, opened.flows)


def test_what_a_packet_was_seen_of_is_no_copy(host: Host) -> None:
    """Of a flow's copies the true one loses its mark, so that readers can tell."""
    opened = Opened(host, BEFORE)
    new = reopened(host, LARGER, BEFORE)
    assert_flows_stay(host, opened.generation, new, opened.vips, opened.flows)
    fd = bpf.open_pin(str(host.pins / "flows"))
    with MappedLines(fd, LARGER.pairs["flows"]) as lines:
        entries = list(lines.entries().values())
    os.close(fd)
    seen = [entry for entry in entries if not entry.flags & 8]
    assert len(seen) == len({entry.fingerprint for entry in entries}) == len(opened.flows)
    assert len(entries) > len(seen)


class Traffic:
    """Packets of flows, sent through the interface from `with` to its end.

    Attributes:
        sent: packets by source port.
        found: the same as they came out, by the backend that they went to.
    """

    def __init__(self, host: Host, flows: int) -> None:
        self._ports = range(20_000, 20_000 + flows)
        self._stop = threading.Event()
        self.sent: Counter[int] = Counter()
        self.found: defaultdict[int, Counter[bytes]] = defaultdict(Counter)
        with netns.entered(host.name):
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self._wire.bind(("peer0", 0x0800))
        self._wire.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._wire.settimeout(0.5)
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._wire.close()

    def _send(self) -> None:
        frames = {port: tcp("A", ip4(to="192.0.2.1"), sport=port) for port in self._ports}
        while not self._stop.is_set():
            for port, frame in frames.items():
                self._wire.send(frame)
                self.sent[port] += 1
            time.sleep(0.002)

    def _receive(self) -> None:
        while True:
            try:
                frame, (_, _, kind, *_) = self._wire.recvfrom(2048)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            if kind != socket.PACKET_OUTGOING and frame[23] == IP_IN_IP:
                self.found[int.from_bytes(frame[54:56], "big")][frame[30:34]] += 1


def route(host: Host) -> None:
    """Give the interface a gateway that is resolved."""
    with netns.entered(host.name), IPRoute() as link:
        index = link.link_lookup(ifname="lb0")[0]
        link.link("set", index=index, address="02:00:00:00:00:01")  # of the frames that come
        link.addr("add", index=index, address="10.254.1.1", prefixlen=24)
        link.neigh("add", dst="10.254.1.2", lladdr="02:00:00:00:00:04", ifindex=index, state=0x80)
        link.route("add", dst="default", gateway="10.254.1.2")


def test_packets_flow_during_a_takeover(host: Host) -> None:
    """None is lost and none goes elsewhere, from before the start until after the change."""
    route(host)
    with netns.entered(host.name):
        plane = host.open()
        publish(plane, BEFORE)
        plane.close()
    with Traffic(host, 64) as traffic:
        time.sleep(0.2)  # for each flow to have an entry
        for capacity in (LARGER, SMALLER):
            reopened(host, capacity, AFTER)
        assert_is_whole(host, SMALLER)
    came = {port: sum(there.values()) for port, there in traffic.found.items()}
    assert came == traffic.sent
    assert len(came) == 64
    assert {len(there) for there in traffic.found.values()} == {1}
    assert len({address for there in traffic.found.values() for address in there}) == 2


def test_limits_of_another_shape_begin_anew(host: Host) -> None:
    """The version before had a hash of source prefixes, and none for marks: flows stay."""
    opened = Opened(host, BEFORE)
    for name in ("syn_limits", "mark_limits"):
        (host.pins / name).unlink()
    old = maps.create_one("syn_limits", Shape(bpf.LRU_HASH, 20, 16, 1 << 16))
    bpf.pin(old, str(host.pins / "syn_limits"))
    os.close(old)
    new = reopened(host, SMALL, AFTER)
    assert_is_whole(host, SMALL)
    assert_flows_stay(host, opened.generation, new, opened.vips, opened.flows)


def test_a_map_that_cannot_be_copied_is_refused(host: Host) -> None:
    """By name, before anything is changed."""
    Opened(host, BEFORE)
    (host.pins / "ledger").unlink()
    odd = maps.create_one("ledger", Shape(bpf.HASH, 4, 32, 16))
    bpf.pin(odd, str(host.pins / "ledger"))
    os.close(odd)
    there = {path.name for path in host.pins.iterdir()}
    refused = rf"pinned map {re.escape(str(host.pins))}/ledger has another shape"
    with netns.entered(host.name), pytest.raises(DataplaneError, match=refused):
        host.open(capacity=LARGER)
    assert {path.name for path in host.pins.iterdir()} == there


OLD_VIP_BYTES = 48
"""Bytes of a VIP's entry in the version before."""
OLD_SHAPES = MappingProxyType(
    {
        "vips": Shape(bpf.HASH, 20, OLD_VIP_BYTES, 4 * 4096),
        "prefixes": Shape(bpf.LPM_TRIE, 24, OLD_VIP_BYTES, 1024, bpf.F_NO_PREALLOC),
        "flows": Shape(bpf.LRU_HASH, FLOW_KEY.itemsize, FLOW.itemsize, 8192, 2),
        "syns": Shape(bpf.LRU_HASH, FLOW_KEY.itemsize, FLOW.itemsize, 8192, 2),
        "fragments": Shape(bpf.LRU_HASH, 40, FLOW.itemsize, 1024, 2),
        "vip_counts": Shape(bpf.PERCPU_ARRAY, 4, 64, 4096),
        "backends": Shape(bpf.ARRAY, 4, 52, 65536),
    }
)


def make_old(host: Host) -> int:
    """Put maps of the version before in the place of ours; return the connection table."""
    for name, shape in OLD_SHAPES.items():
        (host.pins / name).unlink()
        fd = maps.create_one(name, shape)
        bpf.pin(fd, str(host.pins / name))
        os.close(fd)
    return bpf.open_pin(str(host.pins / "flows"))


def old_entry(generation: Generation, name: str, port: int, to: str) -> tuple[bytes, bytes]:
    """Return key and value of a flow as the version before had them."""
    placed = generation.vips[name]
    server = generation.backends[BackendKey("web", to)].identity
    client = ip_address(CLIENT6 if placed.vip.network.version == 6 else CLIENT4)
    ports = [socket.htons(each) for each in (port, placed.vip.port)]
    digest = 0x12345000 if placed.vip.is_network else 0
    key = np.array([(packed(client), placed.identity.id | digest, *ports)], FLOW_KEY)
    value = (*server, placed.identity.incarnation, 0, 1, time.monotonic_ns())
    return key.tobytes(), np.array([value], FLOW).tobytes()


def test_the_version_before_is_taken_over(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Flows keep the backend that the old table names; those of networks are said to be left."""
    wanted = roster("b1", "b2", vips=[*VIPS, vip("net", "198.18.0.0/24")])
    opened = Opened(host, wanted)
    flows = make_old(host)
    kept = {name: service for name, service in opened.vips.items() if name != "net"}
    other = {"b1": "b2", "b2": "b1"}  # not what the table says
    moved = {place: other[str(to)] for place, to in opened.flows.items() if place[0] in kept}
    for (name, i), to in moved.items():
        bpf.map_update(flows, *old_entry(opened.generation, name, 20_000 + i, to))
    bpf.map_update(flows, *old_entry(opened.generation, "net", 20_000, "b1"))
    os.close(flows)
    after = replace(wanted, backends=wanted.backends | roster("b3").backends)
    caplog.set_level("INFO")
    new = reopened(host, LARGER, after)
    assert_is_whole(host, LARGER)
    assert_flows_stay(host, opened.generation, new, kept, moved)
    said = [str(record.msg) for record in caplog.records]
    replaced = {line.split("map=")[1].split()[0] for line in said if "map_replaced" in line}
    assert replaced == set(OLD_SHAPES)
    assert any("flows_taken_over flows=144 " in line for line in said)
    assert any("flows_left_behind flows=1 " in line for line in said)


def test_vips_are_in_new_maps_before_the_program(host: Host) -> None:
    """The program that takes over serves all VIPs at once, before any generation is published."""
    opened = Opened(host, BEFORE)
    os.close(make_old(host))
    with netns.entered(host.name):
        plane = host.open()
        packets = packets_of(host, opened.generation)
        assert all(None not in packets.table(service) for service in opened.vips.values())
        assert isinstance(plane, dataplane.DataPlane)
        plane.close()
    fd = bpf.open_pin(str(host.pins / "vips"))
    assert bpf.map_info(fd).value_size == layout.VIP_PLACE.itemsize
    os.close(fd)
