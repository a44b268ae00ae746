# SPDX-License-Identifier: Apache-2.0
"""Operators' commands with the rights of the roles in deploy/etcd, on an etcd that checks them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer

ROLES = Path(__file__).resolve().parents[2] / "deploy" / "etcd" / "roles.sh"
STATUS = {"release": "live", "state": "synced", "revision": 1_000_000, "digest": "x"}
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    """Give an etcd with the fleet edge, one host in it, and an operator and a viewer."""
    with EtcdServer() as server:
        environment = {**os.environ, "ETCDCTL_ENDPOINTS": f"http://{server.endpoint}"}
        subprocess.run([ROLES, "--fleet", "edge", "lb1"], env=environment, check=True)
        server.ctl("put", "/tidegate/edge/status/lb1", json.dumps(STATUS))
        for user, role in (("root", "root"), ("ann", "operator"), ("eve", "viewer")):
            server.ctl("user", "add", f"{user}:s3cret")
            name = role if role == "root" else f"tidegate-edge-{role}"
            server.ctl("user", "grant-role", user, name)
        server.ctl("auth", "enable")
        yield server


@pytest.fixture
def run(etcd: EtcdServer, tmp_path: Path) -> Run:
    """Run a command as a user."""
    password = tmp_path / "password"
    password.write_text("s3cret\n")

    def run(user: str, *arguments: str) -> tuple[int, str]:
        where = ("--endpoints", etcd.endpoint, "--fleet", "edge", "--user", user)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tidegate.cli.main",
                *arguments,
                *where,
                "--password-file",
                str(password),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_an_operator_applies_lifts_guards_and_rolls_out(
    etcd: EtcdServer, run: Run, tmp_path: Path
) -> None:
    """The operator's role suffices for all of it, putting back included."""
    release = tmp_path / "release.json"
    release.write_text('{"pools/web": {}}')
    code, said = run("ann", "apply", "-f", str(release), "--release", "r2")
    assert code == 0, said
    assert run("ann", "override", "vips", "--for", "1m", "--reason", "test")[0] == 0
    assert run("ann", "override", "remove", "vips-all")[0] == 0
    # The host is one of the keyspace only, so it does not acknowledge.
    code, said = run("ann", "rollout", "start", "r2", "--waves", "100%", "--timeout", "1s")
    assert code == 5, said
    assert "moved lb1" in said
    assert "put back: lb1" in said
    root = ("--user", "root:s3cret")
    kept = etcd.ctl(*root, "get", "--prefix", "--keys-only", "/tidegate/edge/").split()
    assert kept == [
        f"/tidegate/edge/{key}" for key in ("config/r2/pools/web", "rollout", "status/lb1")
    ]


def test_a_viewer_looks_on(run: Run, tmp_path: Path) -> None:
    """Etcd's own message says what it may not do, and it sees what there is."""
    release = tmp_path / "release.json"
    release.write_text('{"pools/web": {}}')
    assert run("eve", "apply", "-f", str(release), "--dry-run")[0] == 0
    for arguments in (
        ("apply", "-f", str(release)),
        ("override", "vips", "--for", "1m", "--reason", "test"),
    ):
        code, said = run("eve", *arguments)
        assert code == 2
        assert "permission denied" in said
    assert run("ann", "apply", "-f", str(release), "--release", "r2")[0] == 0
    assert run("ann", "rollout", "start", "r2", "--waves", "100%", "--timeout", "0")[0] == 5
    code, said = run("eve", "rollout", "status")
    assert code == 0
    assert "failed" in said
