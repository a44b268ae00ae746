# SPDX-License-Identifier: Apache-2.0
"""deploy/etcd/roles.sh on a real etcd: each role may do its work, and nothing else."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.follower import Follower
from tidegate.keyspace.status.document import StatusDocument
from tidegate.keyspace.status.writer import StatusWriter
from tidegate.keyspace.steering import Accepted, LocalHost

if TYPE_CHECKING:
    from tidegate.model.values import Snapshot, View

ROLES = Path(__file__).resolve().parents[2] / "deploy" / "etcd" / "roles.sh"
BASE = "/tidegate/edge"
ROOT = ("--user", "root:r00t")
USERS = {
    "agent1": "tidegate-edge-agent-lb1",
    "operator1": "tidegate-edge-operator",
    "viewer1": "tidegate-edge-viewer",
}
STEERING = ("config/live/vips/a", "tracks/stable", "hosts/lb1", "fleet", "overrides/o")

READS = {
    "agent1": (*STEERING, "health/lb2/web/b1", "status/lb1"),
    "operator1": (*STEERING, "rollout", "health/lb2/web/b1", "status/lb1"),
    "viewer1": (*STEERING, "rollout", "health/lb2/web/b1", "status/lb1"),
}
WRITES = {
    "agent1": ("status/lb1", "health/lb1/web/b1"),
    "operator1": (*STEERING, "rollout", "rollout-driver"),
    "viewer1": (),
}
ALL = (
    *STEERING,
    "rollout",
    "rollout-driver",
    "status/lb1",
    "status/lb2",
    "status/lb10",
    "health/lb1/web/b1",
    "health/lb2/web/b1",
    "health/lb10/web/b1",
)
SEED = "/tidegate-secrets/edge/hash-seed"
OUTSIDE = (
    SEED,
    "/tidegate-secrets/other/hash-seed",
    f"{BASE}2/config/live/vips/a",
    "/tidegate/other/status/lb1",
    "/tidegate/edge",
    "/other",
)


def roles(etcd: EtcdServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as an operator would."""
    return subprocess.run(
        [str(ROLES), *arguments],
        env={**os.environ, "ETCDCTL_ENDPOINTS": f"http://{etcd.endpoint}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def secured() -> Iterator[EtcdServer]:
    """Give an etcd with authentication, the fleet's roles, and a user of each."""
    with EtcdServer() as etcd:
        done = roles(etcd, "--fleet", "edge", "lb1")
        assert done.returncode == 0, done.stderr
        etcd.ctl("user", "add", "root:r00t")
        etcd.ctl("user", "grant-role", "root", "root")
        for user, role in USERS.items():
            etcd.ctl("user", "add", f"{user}:s3cret")
            etcd.ctl("user", "grant-role", user, role)
        etcd.ctl("auth", "enable")
        for key in ALL:
            etcd.ctl(*ROOT, "put", f"{BASE}/{key}", "1")
        for key in OUTSIDE:
            etcd.ctl(*ROOT, "put", key, "1")
        yield etcd


def settings(
    etcd: EtcdServer,
    user: str,
    folder: Path,
    secret: str = "s3cret",  # noqa: S107 - a test's
) -> EtcdSettings:
    password = folder / f"password-{user}"
    password.write_text(secret + "\n", "utf-8")
    return EtcdSettings(endpoints=(etcd.endpoint,), user=user, password_file=str(password))


@pytest.fixture(params=sorted(USERS))
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connection(secured: EtcdServer, user: str, tmp_path: Path) -> Iterator[Etcd]:
    opened = Etcd(settings(secured, user, tmp_path))
    yield opened
    opened.close()


def allowed(call: Callable[..., object], *arguments: object) -> bool:
    """Return whether etcd lets a call through; any other failure than a refusal is an error."""
    try:
        call(*arguments)
    except CallFailed as failure:
        if failure.remedy is Remedy.OPERATOR and "permission denied" in failure.reason:
            return False
        raise
    return True


def test_each_role_reads_what_it_needs_and_nothing_else(connection: Etcd, user: str) -> None:
    """Of every key of the fleet and outside it, a role's user reads exactly the listed ones."""
    keys = [*(f"{BASE}/{key}" for key in ALL), *OUTSIDE]
    readable = {key for key in keys if allowed(connection.range, key.encode())}
    wanted = {f"{BASE}/{key}" for key in READS[user]}
    if user != "agent1":
        wanted |= {key for key in keys if key.startswith(f"{BASE}/")}
    else:
        wanted |= {f"{BASE}/{key}" for key in ALL if key.startswith("health/")} | {SEED}
    assert readable == wanted


def test_each_role_writes_what_it_must_and_nothing_else(connection: Etcd, user: str) -> None:
    """Of every key of the fleet and outside it, a role's user writes exactly the listed ones."""
    keys = [*(f"{BASE}/{key}" for key in ALL), *OUTSIDE]
    writable = {key for key in keys if allowed(connection.put, key.encode(), b"2")}
    seed = {SEED} if user == "agent1" else set()
    assert writable == {f"{BASE}/{key}" for key in WRITES[user]} | seed


def test_an_agent_reads_no_wider_range_than_its_own(secured: EtcdServer, tmp_path: Path) -> None:
    """Neither the fleet's whole prefix nor all statuses are open to an agent."""
    connection = Etcd(settings(secured, "agent1", tmp_path))
    try:
        for prefix in (f"{BASE}/", f"{BASE}/status/", "/tidegate/", "/"):
            end = prefix[:-1] + "0"
            assert not allowed(connection.range, prefix.encode(), end.encode()), prefix
    finally:
        connection.close()


def test_an_agent_with_its_role_follows_and_reports(secured: EtcdServer, tmp_path: Path) -> None:
    """These rights suffice: steering and changes arrive, the status comes and goes."""
    chosen = settings(secured, "agent1", tmp_path)
    views: Received[View] = Received()
    follower = Follower(chosen, "edge", LocalHost("lb1", None, "live"), Accepted(), views)
    follower.start()
    writer = StatusWriter(chosen, f"{BASE}/status/lb1")
    writer.start()
    try:
        secured.ctl(*ROOT, "put", f"{BASE}/config/live/vips/new", "1")
        views.wait(lambda view: "vips/new" in view.snapshot.documents)
        secured.ctl(*ROOT, "put", f"{BASE}/fleet", '{"freeze": true}')
        views.wait(lambda view: bool(view.steering.freeze))
        document = StatusDocument(
            version="1",
            host="lb1",
            release="live",
            revision=1,
            generation=0,
            state="starting",
            started_at="2026-01-31T12:00:00Z",
        )
        writer.submit(document)
        written: Received[Snapshot] = Received()
        seen = Watch(settings(secured, "viewer1", tmp_path), f"{BASE}/status/", written)
        seen.start()
        try:
            written.wait(lambda s: b'"starting"' in s.documents["lb1"].value)
            assert writer.stop()
            written.wait(lambda s: "lb1" not in s.documents)
        finally:
            assert seen.stop()
    finally:
        writer.stop()
        assert follower.stop()


def test_the_documented_steps_end_with_agents_that_may_report(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    """The commands of deploy/etcd/README.md, run in a clone, give lb1 its rights and no others."""
    page = (ROLES.parent / "README.md").read_text("utf-8")
    (script,) = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-euc", f"export ETCDCTL_ENDPOINTS=http://{etcd.endpoint}\n{script}"],
        cwd=ROLES.parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    connection = Etcd(settings(etcd, "lb1", tmp_path, "choose-another"))
    try:
        assert allowed(connection.put, f"{BASE}/status/lb1".encode(), b"{}")
        assert not allowed(connection.put, f"{BASE}/status/lb2".encode(), b"{}")
    finally:
        connection.close()


def test_the_script_can_be_run_again(etcd: EtcdServer) -> None:
    """A second run adds a host and leaves what is there."""
    for hosts in (["lb1"], ["lb1", "lb2"]):
        done = roles(etcd, "--fleet", "edge", *hosts)
        assert done.returncode == 0, done.stderr
    listed = etcd.ctl("role", "list").split()
    assert sorted(listed) == [
        "tidegate-edge-agent-lb1",
        "tidegate-edge-agent-lb2",
        "tidegate-edge-operator",
        "tidegate-edge-viewer",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fleet", "a/b"], "a/b is not a name"),
        (["--fleet", "edge", "lb 1"], "lb 1 is not a name"),
        (["--root", "tidegate/"], "--root is a key that begins with a slash"),
        (["--fleet"], "--fleet needs a value"),
        (["--colour"], "unknown option --colour"),
    ],
)
def test_the_script_refuses_what_it_cannot_mean(
    etcd: EtcdServer, arguments: list[str], words: str
) -> None:
    """A wrong argument is named, and no role is made."""
    done = roles(etcd, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert etcd.ctl("role", "list") == ""
