# SPDX-License-Identifier: Apache-2.0
"""A running agent notices what somebody does to its maps."""

import pytest

from support.packets import vip_map
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.publish import vip_images
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]


def test_a_deleted_vip_comes_back_and_is_counted(bare_lab: Lab, status: StatusWatch) -> None:
    """Within the interval the VIP answers again, the log names it, and the status counts it."""
    lab = bare_lab
    control = Control(lab)
    service = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(lab.address("b1"))})
    control.put("vips/web", service)
    agent = lab.start_agent("lb1")
    first = status.wait("synced", lambda s: s["state"] == "synced" and s["generation"] > 0)
    agent.kill()
    path = config_path(lab.spec, "lb1")
    path.write_text("audit_interval = 1.0\n" + path.read_text())
    agent.restart()
    began = first.status["started_at"]
    status.wait("again", lambda s: s["state"] == "synced" and s["started_at"] != began)
    names = ("vips", "vip_image", "vip_addresses")
    fds = {name: bpf.open_pin(f"{lab.spec.pin_dir('lb1')}/{name}") for name in names}
    before = vip_images.read(fds).in_force
    for key in before:
        vip_map.put(fds, vip_map.index_of(fds, key), vip_map.EMPTY)
    status.wait("repairs", lambda s: s["repairs"] == len(before), timeout=20)
    assert vip_images.read(fds).in_force == before
    fetch = ["curl", "--silent", "--fail", "--max-time", "5", f"http://{lab.vip4()}/"]
    assert lab.client(1).run(fetch).stdout.strip() == "b1"
    logged = f'event=audit map=vips key="{lab.vip4()} port 80 protocol 6" fault=missing'
    assert logged in agent.tail(50)
