# SPDX-License-Identifier: Apache-2.0
"""Names, health and removal on a real rack: flows of servers that are renamed, fail and leave."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.lab.checked_lab import CheckedLab, build_lab, web
from tidegate.lab.plan import CONTROL, etcd_endpoints
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

CHECK = {"type": "http", "interval": 0.3, "timeout": 0.25, "rise": 2, "fall": 2}
POOL = {
    "deregistration_delay": 8,
    "health": {"check": CHECK, "hold_down": 0, "panic_percent": 0},
}
PREFIX = "/tidegate/default/config/live/"
_OWNERS = """
import json, socket, sys
to, found = (sys.argv[1], 7), []
for port in range(41000, 41024):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", port))
    s.settimeout(0.5)
    for _ in range(6):
        try:
            s.sendto(b"?", to)
            found.append(s.recv(99).split()[0].decode())
            break
        except TimeoutError:
            pass
    else:
        found.append("nobody")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def rack() -> Iterator[CheckedLab]:
    with build_lab({"backends": 3}, {"web": POOL}, web, {}, "status_ttl = 3") as built:
        yield built


def owners(lab: Lab) -> list[str]:
    """Return the servers that answer the datagrams of 24 flows, the same ones each time."""
    run = [sys.executable, "-c", _OWNERS, str(lab.vip4())]
    found: list[str] = json.loads(lab.client(1).run(run).stdout)
    return found


def roster(rack: CheckedLab, **names: str) -> int:
    """Make these all backends, each a name of a server, in one transaction; return its revision."""
    there = rack.lab.etcdctl("get", "--prefix", "--keys-only", f"{PREFIX}pools/web/backends/")
    wanted = {f"{PREFIX}pools/web/backends/{n}": s for n, s in names.items()}
    lines = [f"del {key}" for key in there.split() if key not in wanted]
    for key, server in wanted.items():
        document = json.dumps({"address": str(rack.lab.address(server))})
        lines.append(f"put {key} {json.dumps(document)}")
    command = ["etcdctl", f"--endpoints={','.join(etcd_endpoints(rack.lab.stations.values()))}"]
    text = "\n" + "\n".join(lines) + "\n\n\n"
    said = rack.lab.node(CONTROL).run([*command, "-w", "json", "txn"], text=text).stdout
    return int(json.loads(said[said.index('{"header"') :])["header"]["revision"])


def settle(rack: CheckedLab) -> None:
    """Bring back the three servers under their own names, all of them healthy."""
    for name in ("b1", "b2", "b3"):
        rack.lab.start_http(name)
    revision = roster(rack, b1="b1", b2="b2", b3="b3")
    rack.statuses[0].wait_applied(revision)
    rack.wait("all healthy", lambda s: s["backends"]["serving"] == 3)


def test_renamed_servers_keep_their_flows(rack: CheckedLab) -> None:
    """Renamed and exchanged in one transaction, and longer than a deregistration delay ago."""
    settle(rack)
    first = owners(rack.lab)
    assert set(first) == {"b1", "b2", "b3"}
    rack.statuses[0].wait_applied(roster(rack, x="b1", b2="b3", b3="b2"))
    assert owners(rack.lab) == first
    rack.lab.agents["lb1"].kill()
    rack.lab.agents["lb1"].restart()
    deadline = time.monotonic() + POOL["deregistration_delay"] + 2  # type: ignore[operator]
    while time.monotonic() < deadline:
        assert owners(rack.lab) == first
        time.sleep(0.5)


def test_what_failed_does_not_come_back_when_its_key_goes(rack: CheckedLab) -> None:
    """Neither at once, nor over a restart of the agent, nor until its delay is over."""
    settle(rack)
    first = owners(rack.lab)
    assert "b1" in first
    rack.lab.stop_http("b1")
    rack.unhealthy(1)
    moved = owners(rack.lab)
    assert set(moved) == {"b2", "b3"}
    rack.statuses[0].wait_applied(roster(rack, b2="b2", b3="b3"))
    deadline = time.monotonic() + POOL["deregistration_delay"] + 1  # type: ignore[operator]
    rack.lab.agents["lb1"].kill()
    assert owners(rack.lab) == moved
    rack.lab.agents["lb1"].restart()
    while time.monotonic() < deadline:
        assert owners(rack.lab) == moved
        time.sleep(0.3)


def test_what_fails_while_it_leaves_is_taken_out(rack: CheckedLab) -> None:
    """Its check goes on, so its flows move as those of others do."""
    settle(rack)
    first = owners(rack.lab)
    rack.statuses[0].wait_applied(roster(rack, b2="b2", b3="b3"))
    assert owners(rack.lab) == first
    rack.lab.stop_http("b1")
    deadline = time.monotonic() + 6
    while "b1" in owners(rack.lab):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for place, owner in enumerate(owners(rack.lab)):
        assert first[place] in ("b1", owner)


def test_leases_that_expire_one_by_one_do_not_empty_a_pool(rack: CheckedLab) -> None:
    """Of eight four go; then the guard holds, says how many went, and lets them come back."""
    settle(rack)
    lab, status = rack.lab, rack.statuses[0]
    rack.control.put("pools/leased", {})
    leases = []
    for number in range(8):
        lease = lab.etcdctl("lease", "grant", "300").split()[1]
        key = f"{PREFIX}pools/leased/backends/s{number}"
        lab.etcdctl("put", f"--lease={lease}", key, json.dumps({"address": f"10.1.1.{number + 1}"}))
        leases.append(lease)
    service = {"address": "10.99.7.7", "port": 80, "protocol": "tcp", "pool": "leased"}
    status.wait_applied(rack.control.put("vips/leased", service).revision)
    for number, lease in enumerate(leases[:7]):
        lab.etcdctl("lease", "revoke", lease)
        status.wait(
            "its end or a refusal",
            lambda s, n=number: s["backends"]["total"] == 3 + 7 - n or bool(s["refusals"]),  # type: ignore[misc]
        )
    found = status.wait("a refusal", lambda s: bool(s["refusals"])).status
    assert found["backends"]["total"] == 3 + 4
    assert "of 8 serving backends would have left service within 300 s" in found["reason"]
    lab.agents["lb1"].kill()
    lab.agents["lb1"].restart()
    again = status.wait("a new start", lambda s: s["started_at"] != found["started_at"]).status
    again = status.wait("the refusal again", lambda s: s["state"] == "degraded").status
    assert again["backends"]["total"] == 3 + 4
    for number in range(8):
        written = rack.control.put(
            f"pools/leased/backends/s{number}", {"address": f"10.1.1.{number + 1}"}
        )
    seen = status.wait("all back", lambda s: s["backends"]["total"] == 3 + 8).status
    assert seen["state"] == "synced"
    lift = {"guard": "removal", "expires_at": "2100-01-01T00:00:00Z"}
    lab.etcdctl("put", "/tidegate/default/overrides/x", json.dumps(lift))
    rack.control.delete("vips/leased")
    lab.etcdctl("del", "--prefix", f"{PREFIX}pools/leased")
    status.wait("it is gone", lambda s: s["backends"]["total"] == 3)
    lab.etcdctl("del", "/tidegate/default/overrides/x")
    assert written.revision


def test_a_byte_order_mark_and_a_key_without_a_name(rack: CheckedLab) -> None:
    """The one is left out, as in files; the other is refused by a name."""
    settle(rack)
    lab, status = rack.lab, rack.statuses[0]
    document: dict[str, Any] = {
        "address": "10.99.7.8",
        "port": 80,
        "protocol": "tcp",
        "pool": "web",
    }
    lab.etcdctl("put", f"{PREFIX}vips/marked", "\ufeff" + json.dumps(document))
    status.wait("the VIP", lambda s: s["capacity"]["vips"]["used"] == 5 and not s["refusals"])
    lab.etcdctl("put", PREFIX, "{}")
    found = status.wait("a refusal", lambda s: bool(s["refusals"])).status
    assert found["refusals"][0]["key"] == "(no name)"
    assert "no name behind the release's prefix" in found["reason"]
    lab.etcdctl("del", PREFIX)
    lab.etcdctl("del", f"{PREFIX}vips/marked")
    rack.synced()
