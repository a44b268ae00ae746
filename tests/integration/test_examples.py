# SPDX-License-Identifier: Apache-2.0
"""The clients of docs/examples, each run on a real etcd: all write the same good documents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer
from tidegate.keyspace.documents.validate import validate
from tidegate.model.steering import TrackDocument
from tidegate.model.values import EMPTY, BackendKey, Document, Snapshot

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
FLEET = "/tidegate/edge"
STATUS = {
    "state": "degraded",
    "generation": 3,
    "refusals": [{"key": "vips/x", "reason": "port is 0.5."}],
}
DEBIAN_SOURCES = Path("/usr/share/gocode")


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build client.go with Debian's packages of Go sources, since no module proxy is needed then.

    Debian 12 has etcd 3.4, whose client stands under the path that it had before modules; a link
    puts it where today's import finds it.
    """
    folder = tmp_path_factory.mktemp("go")
    modern = Path("src/go.etcd.io/etcd/client/v3")
    if not (DEBIAN_SOURCES / modern).exists():
        (folder / modern).parent.mkdir(parents=True)
        (folder / modern).symlink_to(DEBIAN_SOURCES / "src/go.etcd.io/etcd/clientv3")
    done = subprocess.run(
        ["go", "build", "-o", str(folder / "client"), str(EXAMPLES / "client.go")],
        env={
            **os.environ,
            "GO111MODULE": "off",
            "GOPATH": f"{folder}:{DEBIAN_SOURCES}",
            "GOCACHE": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "client"


@pytest.fixture(params=["etcdctl", "curl", "python", "go"])
def client(request: pytest.FixtureRequest, etcd: EtcdServer) -> tuple[str, list[str]]:
    """Give an example's name, which its release begins with, and its command."""
    name = str(request.param)
    where = [FLEET, "lb1"]
    commands = {
        "etcdctl": lambda: [str(EXAMPLES / "etcdctl.sh"), *where],
        "curl": lambda: [str(EXAMPLES / "curl.sh"), f"http://{etcd.endpoint}", *where],
        "python": lambda: [sys.executable, str(EXAMPLES / "client.py"), etcd.endpoint, *where],
        "go": lambda: [str(request.getfixturevalue("go_client")), etcd.endpoint, *where],
    }
    return name, commands[name]()


def read(etcd: EtcdServer, prefix: str) -> dict[str, Document]:
    """Read a prefix with etcdctl, keys relative to it."""
    lines = etcd.ctl("get", "--prefix", prefix).splitlines()
    return {
        key.removeprefix(prefix): Document(value.encode(), 1)
        for key, value in zip(lines[::2], lines[1::2], strict=True)
    }


def run(etcd: EtcdServer, command: list[str]) -> str:
    """Run an example as its first lines say, and return what it printed."""
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "ETCDCTL_ENDPOINTS": etcd.endpoint,
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_steer_a_fleet(etcd: EtcdServer, client: tuple[str, list[str]]) -> None:
    """Each puts a service, deletes a backend, flips the track and shows what the host says."""
    name, command = client
    etcd.ctl("put", f"{FLEET}/status/lb1", json.dumps(STATUS))
    output = run(etcd, command)
    assert "vips/x" in output
    assert "port is 0.5." in output
    track = json.loads(read(etcd, f"{FLEET}/tracks/")["stable"].value)
    assert TrackDocument(**track) == TrackDocument(release=f"{name}-1")
    release = read(etcd, f"{FLEET}/config/{name}-1/")
    desired, rejections = validate(Snapshot(9, release), EMPTY)
    assert rejections == ()
    assert set(release) == {"pools/web", "pools/web/backends/a", "vips/shop"}
    assert desired.pools["web"].deregistration_delay == 60
    assert str(desired.backends[BackendKey("web", "a")].address) == "198.51.100.7"
    shop = desired.vips["shop"]
    assert (str(shop.address), shop.port, shop.protocol, shop.pool) == (
        "192.0.2.10",
        443,
        "tcp",
        "web",
    )


def test_each_transaction_is_one_revision(etcd: EtcdServer, client: tuple[str, list[str]]) -> None:
    """A service's keys have one revision, so that hosts apply them as one generation."""
    name, command = client
    run(etcd, command)
    found = json.loads(etcd.ctl("get", "--prefix", f"{FLEET}/config/{name}-1/", "-w", "json"))
    assert len({kv["mod_revision"] for kv in found["kvs"]}) == 1
