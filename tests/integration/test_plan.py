# SPDX-License-Identifier: Apache-2.0
"""`tidegate plan` against a pinned data plane with real flows in it, which it must not change."""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from support.packets.kernel import BUILD, LINK, LOOPBACK
from tidegate.cli.main import main
from tidegate.dataplane import links
from tidegate.dataplane.inspect.flow_impact import flow_impact
from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.dataplane.kernel import maps, programs
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.jiffies import Jiffies, clock
from tidegate.dataplane.kernel.lines import MappedLines
from tidegate.dataplane.kernel.pins import make_plane_folder
from tidegate.dataplane.publish import vip_images
from tidegate.dataplane.publish.fence import Fence
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import CapabilityError
from tidegate.keyspace.documents import files
from tidegate.model.features import ALL_FEATURES
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.ticks import TICKS
from tidegate.model.values import BackendKey, Desired
from tidegate.planner import plan
from tidegate.spec.lines import ENDING, Entry

pytestmark = pytest.mark.root

SMALL = maps.Capacity(flows=8192, syns=1024, fragments=1024)
FLOWS = 400
WEB: dict[str, Any] = {
    "pools/web": {},
    "pools/dns": {},
    **{f"pools/web/backends/b{i}": {"address": f"198.51.100.{i}"} for i in range(1, 5)},
    "pools/dns/backends/d1": {"address": "198.51.100.9"},
    "vips/www": {"address": "192.0.2.1", "port": 80, "protocol": "tcp", "pool": "web"},
    "vips/dns": {"address": "192.0.2.1", "port": 53, "protocol": "udp", "pool": "dns"},
}


class Plane:
    """A pinned data plane as an agent keeps it, without interfaces: frames run by test-run."""

    def __init__(self, folder: Path) -> None:
        self.pins = Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}")
        make_plane_folder(self.pins)
        self.maps, _ = maps.create_or_adopt(self.pins, SMALL)
        self.publisher = Publisher(self.maps, self.pins, grace=0)
        build = replace(BUILD, features=ALL_FEATURES, capacity=SMALL)
        self._program = programs.load_balancer(programs.compile_balancer(build), self.maps)
        mac, gateway4, gateway6 = LINK.mac, LINK.gateway4, LINK.gateway6
        facts = links.Link("lo", LOOPBACK, mac, 1500, None, None, gateway4, gateway6, None)
        links.write(self.maps["links"], facts)
        self._file = folder / "plan.json"

    def close(self) -> None:
        """Take everything away."""
        self.publisher.close()
        self.maps.close()
        os.close(self._program)
        shutil.rmtree(self.pins)

    def publish(self, contents: dict[str, Any]) -> Generation:
        """Put documents in force."""
        generation = plan(self.desired(contents), self.publisher.in_force, int(time.time()))
        self.publisher.publish(generation, time.monotonic())
        self.publisher.reap(float("inf"))
        return generation

    def desired(self, contents: dict[str, Any]) -> Desired:
        """Return what documents want; none may be refused."""
        self._file.write_text(json.dumps(contents))
        desired, faults = files.read([self._file]).check()
        assert faults == ()
        return desired

    def open_flows(self, count: int) -> None:
        """TCP flows to `www` and UDP flows to `dns`, half and half, each from its own port."""
        self.run(TCP(dport=80, flags="A"), count // 2)
        self.run(UDP(dport=53), count - count // 2)

    def run(self, transport: Any, count: int) -> None:
        """Run a packet of each of some flows."""
        for port in range(count):
            transport.sport = 1024 + port
            frame = Ether(dst="02:00:00:00:00:01") / IP(src="10.7.7.7", dst="192.0.2.1") / transport
            assert bpf.run(self._program, bytes(frame)).verdict == 3

    def flows_of(self, backend: str) -> int:
        """Entries of the connection table that name a backend, counted one by one."""
        id_ = self.id_of(backend)
        return sum(entry.backend == id_ for entry in self.entries())

    def id_of(self, backend: str) -> int:
        """Return a backend's id."""
        pool, name = backend.split("/")
        return self.publisher.in_force.backends[BackendKey(pool, name)].identity.id

    def entries(self) -> list[Entry]:
        """Return the connection table."""
        with MappedLines(self.maps["flows"], SMALL.pairs["flows"]) as table:
            return list(table.entries().values())

    def holds(self) -> tuple[object, ...]:
        """Everything that is pinned, but for the flows."""
        names = ("prefixes", "routes", "quic_servers", "ledger", "wide_ledger")
        pins = sorted(path.name for path in (self.pins / "tables").iterdir())
        held = vip_images.read(self.maps)
        vips = held.in_force, held.selected, held.bits
        return *vips, *(maps.read_all(name, self.maps[name]) for name in names), pins


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    found = Plane(tmp_path)
    yield found
    found.close()


class Plan:
    """The command on documents, with its answer as JSON."""

    def __init__(self, pins: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.pins = pins
        self._file = folder / "release.json"
        self._capsys = capsys

    def lines(self, contents: dict[str, Any]) -> tuple[int, str]:
        """Exit code and what people read."""
        self._file.write_text(json.dumps(contents))
        code = main(["plan", "-f", str(self._file), "--pins", str(self.pins)])
        return code, self._capsys.readouterr().out

    def __call__(self, contents: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Exit code and what programs read."""
        self._file.write_text(json.dumps(contents))
        code = main(["plan", "-f", str(self._file), "--pins", str(self.pins), "--json"])
        return code, json.loads(self._capsys.readouterr().out)


@pytest.fixture
def planned(plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Plan:
    return Plan(plane.pins, tmp_path, capsys)


def tick() -> int:
    """Return the tick of now."""
    with Jiffies() as jiffies:
        return clock().tick(jiffies.now())


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in WEB.items() if key not in keys}


def test_names_shares_and_slots_are_those_that_publishing_gives(
    plane: Plane, planned: Plan
) -> None:
    """What is said of tables is what the data plane holds once the documents are published."""
    plane.publish(WEB)
    contents = without("pools/web/backends/b4") | {
        "pools/web/backends/b5": {"address": "198.51.100.5"},
        "pools/web/backends/b1": {"address": "198.51.100.1", "weight": 50},
        "vips/new": {"address": "192.0.2.7", "port": 0, "protocol": "tcp", "pool": "web"},
    }
    code, found = planned(contents)
    assert code == 0
    assert found["generation"] == 1
    assert found["vips"] == {"added": ["new"], "removed": [], "changed": []}
    assert found["backends"] == {
        "added": ["web/b5"],
        "removed": ["web/b4"],
        "changed": ["web/b1"],
    }
    assert found["fields"] == {"backends/web/b1": ["weight"]}
    before = plane.publisher.in_force.pools["web"].table.current
    after = plane.publish(contents)
    table, said = after.pools["web"].table.current, found["tables"]["web"]
    assert said["moved"] == np.count_nonzero(before != table)
    assert said["minimum"] <= said["moved"] <= said["bound"]
    for name, share in said["shares"].items():
        id_ = after.backends[BackendKey("web", name)].identity.id
        assert share["after"] == pytest.approx(100 * np.mean(table == id_))
        assert share["before"] == pytest.approx(100 * np.mean(before == id_))
    assert found["tables"]["dns"]["moved"] == 0


def test_tracked_flows_by_what_becomes_of_them(plane: Plane, planned: Plan) -> None:
    """Flows of a quarantined backend move, of a deleted one stay for now, of a lost VIP end."""
    plane.publish(WEB)
    plane.open_flows(FLOWS)
    _, found = planned(WEB)
    assert (found["flows"]["tracked"], found["flows"]["stay"]) == (FLOWS, FLOWS)
    failed = {"address": "198.51.100.1", "state": "quarantine"}
    _, found = planned(without("pools/web/backends/b2") | {"pools/web/backends/b1": failed})
    flows = found["flows"]
    assert flows["lost_backend"] == {"web/b1": plane.flows_of("web/b1")}
    assert flows["leaving"] == {"web/b2": plane.flows_of("web/b2")}
    assert flows["stay"] == FLOWS - plane.flows_of("web/b1")
    _, found = planned(without("vips/dns"))
    assert found["flows"]["lost_vip"] == {"dns": FLOWS // 2}
    _, found = planned(WEB | {"vips/www": WEB["vips/www"] | {"address": "192.0.2.2"}})
    assert found["flows"]["lost_vip"] == {"www": FLOWS // 2}
    _, found = planned(WEB | {"vips/www": WEB["vips/www"] | {"tracking": "none"}})
    assert found["flows"]["forgotten"] == {"www": FLOWS // 2}
    gone = WEB | {"pools/web": {"deregistration_delay": 0}}
    plane.publish(gone)
    _, found = planned({key: gone[key] for key in gone if key != "pools/web/backends/b3"})
    assert found["flows"]["lost_backend"] == {"web/b3": plane.flows_of("web/b3")}


def test_entries_that_no_packet_would_follow_are_no_flows(plane: Plane, planned: Plan) -> None:
    """Those of a backend that is gone, and of UDP flows that were idle for too long."""
    contents = WEB | {
        "pools/web": {"deregistration_delay": 0},
        "vips/dns": WEB["vips/dns"] | {"udp_idle_timeout": 1},
    }
    plane.publish(contents)
    plane.open_flows(FLOWS)
    there = plane.flows_of("web/b4")
    del contents["pools/web/backends/b4"]
    after = plane.publish(contents)
    with PinnedDataPlane(plane.pins) as pinned:
        later = (tick() + clock().limit(1) + 1) % TICKS
        found = flow_impact(pinned.flows(later), pinned.generation(), after, clock())
    assert (found.tracked, found.stale) == (FLOWS // 2 - there, FLOWS // 2 + there)


def test_flows_that_their_clients_ended_are_no_flows(plane: Plane, planned: Plan) -> None:
    """Of those of a backend, the ones that said FIN or RST are not among what would move."""
    plane.publish(WEB)
    plane.run(TCP(dport=80, flags="A"), FLOWS)
    everything = plane.flows_of("web/b3")
    for flags, count in (("FA", 100), ("R", 200)):
        plane.run(TCP(dport=80, flags=flags), count)
    of_it = [each for each in plane.entries() if each.backend == plane.id_of("web/b3")]
    alive = sum(not each.flags & ENDING for each in of_it)
    gone = WEB | {"pools/web": {"deregistration_delay": 0}}
    plane.publish(gone)
    _, found = planned({key: gone[key] for key in gone if key != "pools/web/backends/b3"})
    assert 0 < alive < everything
    assert found["flows"]["lost_backend"] == {"web/b3": alive}
    assert found["flows"]["tracked"] == FLOWS - 200
    assert found["flows"]["stale"] == 200


def test_silence_is_counted_to_the_tick(plane: Plane) -> None:
    """A flow lives for as many ticks as packets give it, and not for one more."""
    contents = WEB | {"vips/dns": WEB["vips/dns"] | {"udp_idle_timeout": 600}}
    generation = plane.publish(contents)
    vips, half = generation.vips, FLOWS // 2
    before = tick()
    plane.open_flows(FLOWS)
    after = tick()
    udp = clock().limit(vips["dns"].vip.udp_idle_timeout)
    tcp = clock().limit(vips["www"].vip.tcp_idle_timeout)
    cases = [(before + udp, FLOWS), (after + udp + 1, half), (before + tcp, half)]
    with PinnedDataPlane(plane.pins) as pinned:
        for at, alive in [*cases, (after + tcp + 1, 0)]:
            flows = pinned.flows(at % TICKS)
            found = flow_impact(flows, generation, generation, clock())
            assert (found.tracked, found.stale) == (alive, FLOWS - alive)


def test_a_look_changes_nothing_and_takes_no_lock(plane: Plane, planned: Plan) -> None:
    """It works beside an agent, and leaves every pin as it was, leftovers of a crash included."""
    plane.publish(WEB)
    left = maps.create_inner()
    bpf.pin(left, str(plane.pins / "tables" / "1-99"))
    os.close(left)
    before = plane.holds()
    fence = Fence(plane.pins)
    try:
        code, found = planned(without("pools/web/backends/b1"))
    finally:
        fence.close()
    assert (code, found["generation"]) == (0, 1)
    assert plane.holds() == before
    (plane.pins / "tables" / "1-99").unlink()


def test_what_is_read_is_of_one_moment(plane: Plane) -> None:
    """While generations are published one after another, a reader never sees a mixture."""
    plane.publish(WEB)
    known, stop = [plane.publisher.in_force], threading.Event()

    def publish() -> None:
        weight = 1
        while not stop.is_set():
            weight = weight % 100 + 1
            backend = {"address": "198.51.100.1", "weight": weight}
            known.append(plane.publish(WEB | {"pools/web/backends/b1": backend}))
            stop.wait(0.05)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        with PinnedDataPlane(plane.pins) as pinned:
            found = [pinned.generation() for _ in range(15)]
    finally:
        stop.set()
        thread.join()
    digests = {generation.number: generation.digest for generation in known}
    assert all(digests[generation.number] == generation.digest for generation in found)


def test_a_guard_that_would_refuse_is_reported(plane: Plane, planned: Plan) -> None:
    """Exit code 4, with the reason; broken documents are 3 before anything is looked at."""
    plane.publish(WEB)
    code, found = planned({key: WEB[key] for key in WEB if "/web/backends" not in key})
    assert code == 4
    assert any("pools/web/backends" in reason for reason in found["refusals"])
    code, found = planned(WEB | {"vips/www": {}})
    assert (code, found["faults"][0]["key"]) == (3, "vips/www")
    code, text = planned.lines({})
    assert code == 4
    assert "\nrefused: vips: " in text


def test_an_empty_data_plane_is_planned_from_nothing(
    plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no pins all is new, and with pins that hold nothing too."""
    for pins in (Path("/sys/fs/bpf/tgtest-none"), plane.pins):
        planned = Plan(pins, tmp_path, capsys)
        code, found = planned(WEB)
        assert (code, found["generation"], found["flows"]["tracked"]) == (0, 0, 0)
        assert len(found["backends"]["added"]) == 5
        assert "nothing is in force there; all is new" in planned.lines(WEB)[1]
    with PinnedDataPlane(plane.pins) as pinned:
        assert pinned.generation().vips == NOTHING.vips


def test_people_read_what_changes(plane: Plane, planned: Plan) -> None:
    """Names with a sign, changed fields, the table's slots, shares and flows, a line each."""
    plane.publish(WEB)
    plane.open_flows(FLOWS)
    code, text = planned.lines(
        without("pools/web/backends/b4")
        | {"pools/web/backends/b1": {"address": "198.51.100.1", "state": "disabled"}}
    )
    lines = text.splitlines()
    assert code == 0
    assert lines[0] == f"{plane.pins}: generation 1 of revision 9, 2 VIPs, 2 pools, 5 backends"
    assert lines[1:6] == [
        "vips: as they are",
        "pools: as they are",
        "backends: 1 removed, 1 changed",
        "  - web/b4",
        "  ~ web/b1 (state)",
    ]
    assert lines[6].startswith("table of web: ")
    assert [line.split()[0] for line in lines[7:11]] == ["b1", "b2", "b3", "b4"]
    count = plane.flows_of("web/b1")
    assert f"tracked flows: {FLOWS}, of which {FLOWS - count} stay where they are" in lines
    assert f"  {count} of web/b1 move, as their backend goes at once" in lines


def test_without_privileges_it_says_what_to_do(plane: Plane) -> None:
    """The pins are root's; the message says so."""
    os.seteuid(65534)
    try:
        with pytest.raises(CapabilityError, match="run as root"), PinnedDataPlane(plane.pins):
            pass
    finally:
        os.seteuid(0)
