# SPDX-License-Identifier: Apache-2.0
"""The program is built for the documents in force, proven, and replaced under traffic."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from support.documents.roster import backend, desired, generations, vip
from support.lab.datagrams import Datagrams
from support.packets.kernel import BUILD
from tidegate.dataplane import plane as dataplane
from tidegate.dataplane import removal
from tidegate.dataplane.kernel import loader, maps, programs
from tidegate.dataplane.kernel.pins import make_plane_folder, pinned_programs
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.proof import prove
from tidegate.errors import CompileError, DataplaneError
from tidegate.lab import netns
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab
from tidegate.model.features import ALL_FEATURES, Feature

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def pins() -> Iterator[Path]:
    folder = Path(f"/sys/fs/bpf/tgproof-{secrets.token_hex(4)}")
    make_plane_folder(folder)
    yield folder
    removal.remove(folder, [])


@pytest.mark.parametrize("features", [frozenset(), frozenset({Feature.V6}), ALL_FEATURES])
def test_a_program_is_proven_whatever_it_can_do(pins: Path, features: frozenset[Feature]) -> None:
    """The least program, a usual one and the whole one do what the specification says."""
    build = replace(BUILD, features=features)
    prove(programs.compile_balancer(build), build, pins)


def test_a_program_that_disagrees_is_refused(pins: Path) -> None:
    """Another hash key leads elsewhere, and the frame that shows it is in the reason."""
    other = replace(BUILD, hash_seed=b"another")
    with pytest.raises(DataplaneError, match=r"frame [0-9a-f]+ gave verdict 3"):
        prove(programs.compile_balancer(other), BUILD, pins)


@pytest.mark.lab(backends=2)
def test_the_program_is_replaced_under_traffic(bare_lab: Lab, status: StatusWatch) -> None:
    """Features come and go with the documents; no connection notices, and no datagram is lost."""
    lab = bare_lab
    control = Control(lab)
    service = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("pools/web", {})
    for name in ("b1", "b2"):
        control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
    control.put("vips/web", service)
    control.put("vips/echo", service | {"port": 7, "protocol": "udp"})
    agent = lab.start_agent("lb1")
    status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] > 0, timeout=20)
    url = f"http://{lab.vip4()}/download?bytes=1"
    download = lab.client(1).popen(
        ["curl", "--silent", "--fail", "--max-time", "60", "--output", "/dev/null", url]
    )
    echo = Datagrams(lab)
    for options in ({"mss_clamp": 1400}, {"tracking": "transition"}, {"mss_clamp": 1200}, {}):
        status.wait_applied(control.put("vips/web", service | options).revision)
        fetch = ["curl", "--silent", "--fail", "--max-time", "5", f"http://{lab.vip4()}/"]
        for _ in range(10):
            assert lab.client(2).run(fetch).stdout.strip() in ("b1", "b2")
    assert download.poll() in (None, 0)
    download.kill()
    download.wait()
    sent, missing = echo.end()
    assert sent > 100
    assert missing == "[]"  # not one packet was lost over four exchanges
    built = [line for line in agent.tail(200).splitlines() if "program id=" in line]
    assert any("CLAMP" in line for line in built)
    assert any("TRANSITION" in line for line in built)
    assert not {"CLAMP", "TRANSITION"} & set(built[-1].split("features=")[1].split(","))


def test_a_build_that_fails_leaves_the_old_one_running() -> None:
    """With a reason; the maps, the program on the interface and what it does stay."""
    simple, clamped = generations(
        desired([vip("web", "10.99.0.1")], [backend("b1")]),
        desired([vip("web", "10.99.0.1", mss_clamp=1200)], [backend("b1")]),
    )
    name = f"t{secrets.token_hex(4)}"
    netns.create(name)
    with netns.entered(name), IPRoute() as netlink, pytest.MonkeyPatch.context() as patch:
        netlink.link("add", ifname="lb0", kind="veth", peer="out0")
        settings = dataplane.Settings(
            pins=Path(f"/sys/fs/bpf/tgbuild-{name}"),
            interfaces=["lb0"],
            mode="native",
            build=replace(BUILD, capacity=maps.Capacity(1024, 1024, 1024)),
            gateways=Gateways(),
            grace=0.0,
        )
        plane = dataplane.DataPlane(settings)
        try:
            plane.serve(simple)
            plane.publisher.publish(simple, 0.0)
            running = programs.attached("lb0")
            pinned = pinned_programs(settings.pins)
            patch.setattr(loader, "MOST_VERIFIED", 1000)
            with pytest.raises(CompileError, match="takes the verifier"):
                plane.serve(simple, clamped)
            assert programs.attached("lb0") == running
            assert pinned_programs(settings.pins) == pinned == {running.program_id}
            patch.undo()
            plane.serve(simple, clamped)
            assert programs.attached("lb0") != running
        finally:
            plane.close()
            removal.remove(settings.pins, ["lb0"])
            netns.remove(name)
