# SPDX-License-Identifier: Apache-2.0
"""Documents by which the balancer would send packets to itself: refused alone; others count."""

import secrets
from collections.abc import Iterator

import pytest

from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """One host that serves one VIP by one backend."""
    with Lab(LabSpec(name=f"x{secrets.token_hex(4)}", backends=1)) as built:
        yield built


def test_documents_that_would_loop_are_refused_alone(lab: Lab) -> None:
    """A backend within a VIP that takes its GUE, and one of a VIP's own address, by their keys."""
    control, address = Control(lab), str(lab.address("b1"))
    www = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": address})
    first = control.put("vips/www", www).revision
    lab.start_agent()
    with StatusWatch(lab, "lb1") as watch:
        watch.wait_applied(first, timeout=60)
        network = address.rpartition(".")[0] + ".0/24"
        all_ports = {"address": network, "port": 0, "protocol": "udp", "pool": "gue"}
        control.put("pools/gue", {"encapsulation": "gue", "gue_port": 6081})
        control.put("vips/net", all_ports)
        control.put("pools/gue/backends/within", {"address": address})
        control.put("pools/web/backends/self", {"address": str(lab.vip4())})
        last = control.put("pools/web", {"mtu": 1480}).revision
        seen = watch.wait("the last change", lambda s: s["generation_revision"] >= last, 60)
    refused = {(each["key"], each["field"]) for each in seen.status["refusals"]}
    assert refused == {
        ("pools/gue/backends/within", "address"),
        ("pools/web/backends/self", "address"),
    }
    ask = ["curl", "--silent", "--fail", "--max-time", "20", f"http://{lab.vip4()}/"]
    assert lab.client(1).run(ask).stdout.strip()
