# SPDX-License-Identifier: Apache-2.0
"""`tidegate apply` and `tidegate override` on a real etcd and a real agent."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer
from tidegate.cli import apply
from tidegate.errors import KeyspaceError
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.store import Fleet, Store
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab
from tidegate.rollout.apply import difference

LIVE = "/tidegate/default/config/live/"
COMMAND = (sys.executable, "-m", "tidegate.cli.main")
WEB: Mapping[str, object] = {
    "pools/web": {},
    "pools/web/backends/a": {"address": "198.51.100.1"},
    "vips/shop": {"address": "192.0.2.1", "port": 443, "protocol": "tcp", "pool": "web"},
}


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


def files(folder: Path, documents: Mapping[str, object]) -> str:
    path = folder / "release.json"
    path.write_text(json.dumps(documents))
    return str(path)


def run(etcd: EtcdServer, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *arguments, "--endpoints", etcd.endpoint],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def keys(etcd: EtcdServer) -> dict[str, int]:
    """Keys of the live release and the revisions that wrote them."""
    found = json.loads(etcd.ctl("-w", "json", "get", "--prefix", LIVE)).get("kvs", [])
    return {base64.b64decode(kv["key"]).decode()[len(LIVE) :]: kv["mod_revision"] for kv in found}


def test_a_release_becomes_what_the_files_have(etcd: EtcdServer, tmp_path: Path) -> None:
    """New, changed and deleted keys in one transaction; what is equal is not written."""
    code, said = run(etcd, "apply", "-f", files(tmp_path, WEB))
    assert code == 0, said
    assert "3 added, 0 changed, 0 deleted" in said
    assert "no host follows the release live" in said
    first = keys(etcd)
    assert len(set(first.values())) == 1
    changed = {**WEB, "pools/web/backends/b": {"address": "198.51.100.2"}}
    changed["pools/web"] = {"deregistration_delay": 60}
    changed["vips/shop"] = dict(reversed(WEB["vips/shop"].items()))  # type: ignore[attr-defined]
    del changed["pools/web/backends/a"]
    code, said = run(etcd, "apply", "-f", files(tmp_path, changed))
    assert code == 0, said
    for line in ("+ pools/web/backends/b", "~ pools/web", "- pools/web/backends/a"):
        assert f"  {line}\n" in said
    second = keys(etcd)
    assert set(second) == set(changed)
    assert second["vips/shop"] == first["vips/shop"]
    assert second["pools/web"] == second["pools/web/backends/b"]
    code, said = run(etcd, "apply", "-f", files(tmp_path, changed))
    assert (code, keys(etcd)) == (0, second)
    assert "already equals the files" in said


def test_nothing_is_written_without_need(etcd: EtcdServer, tmp_path: Path) -> None:
    """Not for a dry run, not if there are faults, and not if there are no documents."""
    code, said = run(etcd, "apply", "-f", files(tmp_path, WEB), "--dry-run")
    assert (code, keys(etcd)) == (0, {})
    assert "+ vips/shop" in said
    broken = {**WEB, "vips/shop": {"address": "nowhere"}}
    code, said = run(etcd, "apply", "-f", files(tmp_path, broken))
    assert (code, keys(etcd)) == (3, {})
    assert "vips/shop" in said
    code, said = run(etcd, "apply", "-f", files(tmp_path, {}))
    assert (code, keys(etcd)) == (2, {})


def test_what_somebody_else_writes_at_that_moment_stays(etcd: EtcdServer) -> None:
    """The transaction is not made, and the error names the key and says what to do."""
    etcd.ctl("put", f"{LIVE}pools/web", "{}")
    with Store(Fleet(EtcdSettings(endpoints=(etcd.endpoint,)), "default")) as store:
        current = store.read_release("live").documents
        etcd.ctl("put", f"{LIVE}pools/web", '{"mtu": 1400}')
        wanted = {"pools/web": b'{"mtu": 1500}', "pools/other": b"{}"}
        with pytest.raises(
            KeyspaceError, match=r"config/live/pools/web was changed .* apply again"
        ):
            apply._write(store, "live", difference(current, wanted), current, wanted)
    assert etcd.ctl("get", "--print-value-only", "--prefix", LIVE) == '{"mtu": 1400}\n'


def test_a_rollout_of_the_release_is_mentioned(etcd: EtcdServer, tmp_path: Path) -> None:
    """Hosts that are just being watched with it would get the change unwatched."""
    rollout = {"release": "live", "track": "rollout-live", "waves": ["100%"], "driver": "x"}
    times = {"started_at": "2026-01-31T12:00:00Z", "changed_at": "2026-01-31T12:00:00Z"}
    etcd.ctl("put", "/tidegate/default/rollout", json.dumps({**rollout, **times}))
    code, said = run(etcd, "apply", "-f", files(tmp_path, WEB))
    assert (code, "a rollout of live is under way" in said) == (0, True)


def test_another_release_and_a_large_change(etcd: EtcdServer, tmp_path: Path) -> None:
    """More than one transaction holds is written in several, and the command says so."""
    many = {f"pools/web/backends/b{n}": {"address": f"203.0.113.{n}"} for n in range(1, 200)}
    code, said = run(etcd, "apply", "-f", files(tmp_path, {**WEB, **many}), "--release", "r2")
    assert code == 0, said
    assert "written in 2 transactions" in said
    assert keys(etcd) == {}
    found = etcd.ctl("get", "--prefix", "--keys-only", "/tidegate/default/config/r2/")
    assert len(found.split()) == 202


def test_overrides_are_written_listed_and_removed(etcd: EtcdServer) -> None:
    """An override expires by itself, has a reason, and is one key."""
    given = ("removal", "--pool", "web", "--for", "10m", "--reason", "moving web")
    code, said = run(etcd, "override", *given)
    assert code == 0, said
    key = "/tidegate/default/overrides/removal-web"
    document = json.loads(etcd.ctl("get", "--print-value-only", key))
    assert document["guard"] == "removal"
    assert document["pool"] == "web"
    assert document["reason"] == "moving web"
    code, said = run(etcd, "override", "list")
    assert said.startswith("removal-web: removal for pool web until 2")
    etcd.ctl("put", "/tidegate/default/overrides/bad", "{}")
    assert "bad: refused" in run(etcd, "override", "list")[1]
    assert run(etcd, "override", "remove", "removal-web")[0] == 0
    code, said = run(etcd, "override", "remove", "removal-web")
    assert (code, "there is no override removal-web" in said) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("removal", "--for", "2d", "--reason", "x"),
        ("removal", "--for", "0s", "--reason", "x"),
        ("removal", "--for", "soon", "--reason", "x"),
        ("removal", "--for", "1m"),
        ("removal", "--for", "1m", "--reason", "x", "--pool", "no pool"),
        ("removal", "--for", "1m", "--reason", "x", "--name", "a/b"),
        ("luck", "--for", "1m", "--reason", "x"),
    ],
)
def test_overrides_without_bounds_are_refused(etcd: EtcdServer, arguments: tuple[str, ...]) -> None:
    """A guard is lifted for at most a day, by its name, and with a reason."""
    code, said = run(etcd, "override", *arguments)
    assert code == 2
    assert "Traceback" not in said
    assert etcd.ctl("get", "--prefix", "/tidegate/") == ""


@pytest.mark.root
@pytest.mark.lab(backends=3)
def test_an_agent_acknowledges_refuses_and_takes_an_override(bare_lab: Lab, tmp_path: Path) -> None:
    """The command waits for the host: 0 when it is in force, 5 with the reasons when not."""

    def apply(*backends: str, timeout: str = "20s") -> tuple[int, str]:
        documents = {
            "pools/web": {},
            "vips/web": {
                "address": str(bare_lab.vip4()),
                "port": 80,
                "protocol": "tcp",
                "pool": "web",
            },
            **{f"pools/web/backends/{n}": {"address": str(bare_lab.address(n))} for n in backends},
        }
        return there("apply", "-f", files(tmp_path, documents), "--timeout", timeout)

    def there(*arguments: str) -> tuple[int, str]:
        done = bare_lab.node(CONTROL).run([*COMMAND, *arguments], check=False)
        return done.returncode, done.stdout + done.stderr

    with StatusWatch(bare_lab, "lb1") as status:
        bare_lab.start_agent("lb1")
        status.wait("synced", lambda s: s["state"] == "synced", 20)
    code, said = apply("b1", "b2", "b3")
    assert code == 0, said
    assert "lb1: in force" in said
    code, said = apply()
    assert code == 5
    assert "lb1: refuses" in said
    lifted = ("override", "removal", "--pool", "web", "--for", "5m", "--reason", "a test")
    assert there(*lifted)[0] == 0
    code, said = apply()
    assert code == 0, said
    bare_lab.etcdctl("put", "/tidegate/default/hosts/lb1", '{"freeze": true, "reason": "by hand"}')
    with StatusWatch(bare_lab, "lb1") as status:
        status.wait("frozen", lambda s: s["state"] == "frozen", 20)
    code, said = apply("b1")
    assert code == 0
    assert "lb1: frozen, keeps what it has" in said
