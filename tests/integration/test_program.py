# SPDX-License-Identifier: Apache-2.0
"""The program is built for the documents in force, proven, and replaced under traffic."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel import BUILD
from tidegate.dataplane import host, programs
from tidegate.dataplane.proof import prove
from tidegate.errors import DataplaneError
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab
from tidegate.model.features import ALL_FEATURES, Feature

pytestmark = pytest.mark.root


@pytest.fixture
def pins() -> Iterator[Path]:
    folder = Path(f"/sys/fs/bpf/tgproof-{secrets.token_hex(4)}")
    host.make_folder(folder)
    yield folder
    host.remove(folder, [])


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


def test_the_program_is_replaced_under_traffic() -> None:
    """Features come and go with the documents, and no connection notices."""
    with (
        Lab(LabSpec(name=f"t{secrets.token_hex(4)}", backends=2)) as lab,
        StatusWatch(lab, "lb1") as status,
    ):
        control = Control(lab)
        service = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put("pools/web", {})
        for name in ("b1", "b2"):
            control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
        control.put("vips/web", service)
        agent = lab.start_agent("lb1")
        status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] > 0, timeout=20)
        url = f"http://{lab.vip4()}/download?bytes=1"
        download = lab.client(1).popen(
            ["curl", "--silent", "--fail", "--max-time", "60", "--output", "/dev/null", url]
        )
        for options in ({"mss_clamp": 1400}, {"tracking": "transition"}, {"mss_clamp": 1200}, {}):
            status.wait_applied(control.put("vips/web", service | options).revision)
            fetch = ["curl", "--silent", "--fail", "--max-time", "5", f"http://{lab.vip4()}/"]
            for _ in range(10):
                assert lab.client(2).run(fetch).stdout.strip() in ("b1", "b2")
        assert download.poll() in (None, 0)
        download.kill()
        download.wait()
        built = [line for line in agent.tail(200).splitlines() if "program id=" in line]
        assert any("CLAMP" in line for line in built)
        assert any("TRANSITION" in line for line in built)
        assert not {"CLAMP", "TRANSITION"} & set(built[-1].split("features=")[1].split(","))
