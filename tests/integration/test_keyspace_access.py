# SPDX-License-Identifier: Apache-2.0
"""Logins, their loss and TLS on a real etcd, and the documentation's own commands.

What a role may do, and that an agent needs no more, is in test_etcd_roles.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer, Received
from tidegate.errors import ConfigError
from tidegate.keyspace import follower
from tidegate.keyspace.documents.validate import validate
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch, WatchState
from tidegate.keyspace.steering import Accepted, LocalHost
from tidegate.model.values import EMPTY, Desired, Snapshot, View

PREFIX = "/tidegate/edge/config/live/"
TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs" / "keyspace.md"
ROLES = TOP / "deploy" / "etcd" / "roles.sh"
ROLE = "tidegate-edge-agent-lb1"
ROOT = ("--user", "root:r00t")


class Follower:
    """A watch, and what it handed over."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.snapshots: Received[Snapshot] = Received()
        self.states: Received[WatchState] = Received()
        self.watch = Watch(settings, PREFIX, self.snapshots, self.states)
        self.watch.start()

    def key(self, key: str) -> Snapshot:
        """Wait for a snapshot that has `key`."""
        return self.snapshots.wait(lambda snapshot: key in snapshot.documents)

    def phase(self, phase: str, words: str = "") -> WatchState:
        """Wait for a state whose reason has these words."""
        return self.states.wait(lambda state: state.phase == phase and words in state.reason)


@pytest.fixture
def secured(etcd: EtcdServer) -> EtcdServer:
    """Give an etcd with users: root, and `agent` with the role that deploy/etcd makes for lb1."""
    subprocess.run(
        [ROLES, "--fleet", "edge", "lb1"],
        env={**os.environ, "ETCDCTL_ENDPOINTS": f"http://{etcd.endpoint}"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    etcd.ctl("user", "add", "root:r00t")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("user", "add", "agent:s3cret")
    etcd.ctl("user", "grant-role", "agent", ROLE)
    etcd.ctl("auth", "enable")
    return etcd


def settings(etcd: EtcdServer, folder: Path, password: str = "s3cret") -> EtcdSettings:  # noqa: S107 - a test's
    path = folder / "password"
    path.write_text(password + "\n", "utf-8")
    return EtcdSettings(
        endpoints=(etcd.endpoint,),
        user="agent",
        password_file=str(path),
        backoff_max=0.3,
        fatal_retry=0.3,
    )


def test_a_lost_token_is_replaced(secured: EtcdServer, tmp_path: Path) -> None:
    """Etcd forgets its tokens when it restarts; the watch logs in again and goes on."""
    follower = Follower(settings(secured, tmp_path))
    try:
        secured.ctl(*ROOT, "put", PREFIX + "vips/a", "1")
        follower.key("vips/a")
        secured.restart()
        secured.ctl(*ROOT, "put", PREFIX + "vips/b", "1")
        follower.key("vips/b")
        assert "fatal" not in {state.phase for state in follower.states.items}
    finally:
        assert follower.watch.stop()


def test_a_wrong_password_is_fatal_until_it_is_right(secured: EtcdServer, tmp_path: Path) -> None:
    """The reason names the login, never the password; a corrected file mends it."""
    follower = Follower(settings(secured, tmp_path, "wr0ng"))
    try:
        state = follower.phase("fatal")
        assert "could not log in as agent" in state.reason
        assert "wr0ng" not in state.reason
        settings(secured, tmp_path)
        secured.ctl(*ROOT, "put", PREFIX + "vips/a", "1")
        follower.key("vips/a")
        follower.phase("connected")
    finally:
        assert follower.watch.stop()


def test_a_missing_user_is_fatal_and_says_what_to_set(secured: EtcdServer) -> None:
    """Without a user, an etcd that wants one is a matter for a person."""
    follower = Follower(EtcdSettings(endpoints=(secured.endpoint,), fatal_retry=0.3))
    try:
        assert "set etcd.user and etcd.password_file" in follower.phase("fatal").reason
    finally:
        assert follower.watch.stop()


def test_a_withdrawn_permission_is_fatal_until_it_is_granted(
    secured: EtcdServer, tmp_path: Path
) -> None:
    """Losing the role is reported, and having it back needs nobody at the host."""
    follower = Follower(settings(secured, tmp_path))
    try:
        follower.phase("connected")
        secured.ctl(*ROOT, "user", "revoke-role", "agent", ROLE)
        secured.restart()
        assert "permission denied" in follower.phase("fatal", "could not read").reason
        secured.ctl(*ROOT, "user", "grant-role", "agent", ROLE)
        secured.ctl(*ROOT, "put", PREFIX + "vips/a", "1")
        follower.key("vips/a")
    finally:
        assert follower.watch.stop()


def test_a_user_is_no_hindrance_where_etcd_asks_for_none(etcd: EtcdServer, tmp_path: Path) -> None:
    """The agent's file may name a user before etcd's authentication is enabled."""
    follower = Follower(settings(etcd, tmp_path))
    try:
        etcd.ctl("put", PREFIX + "vips/a", "1")
        follower.key("vips/a")
    finally:
        assert follower.watch.stop()


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Make an authority and two certificates of it: `server` for 127.0.0.1, and `client`."""
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(tmp_path, *new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    for name, san in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "")):
        openssl(
            tmp_path, *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        (tmp_path / f"{name}.ext").write_text(san, "ascii")
        openssl(
            tmp_path,
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            f"{name}.pem",
            "-days",
            "2",
            "-extfile",
            f"{name}.ext",
        )
    return tmp_path


@pytest.fixture
def tls_etcd(authority: Path) -> Iterator[EtcdServer]:
    """Give an etcd that wants a client certificate."""
    with EtcdServer(
        "--cert-file",
        str(authority / "server.pem"),
        "--key-file",
        str(authority / "server.key"),
        "--client-cert-auth",
        "--trusted-ca-file",
        str(authority / "ca.pem"),
        scheme="https",
    ) as server:
        yield server


def test_client_certificates_work_and_strangers_do_not(
    tls_etcd: EtcdServer, authority: Path
) -> None:
    """With CA, certificate and key the watch connects; without the certificate it is not let in."""
    ca, cert, key = (str(authority / name) for name in ("ca.pem", "client.pem", "client.key"))
    ends = (tls_etcd.endpoint,)
    follower = Follower(EtcdSettings(endpoints=ends, ca=ca, cert=cert, key=key))
    try:
        tls_etcd.ctl(f"--cacert={ca}", f"--cert={cert}", f"--key={key}", "put", PREFIX + "a", "1")
        follower.key("a")
    finally:
        assert follower.watch.stop()
    stranger = Follower(EtcdSettings(endpoints=ends, ca=ca))
    try:
        stranger.phase("reconnecting")
        assert stranger.snapshots.items == []
    finally:
        assert stranger.watch.stop()


def test_a_certificates_name_is_the_user(tls_etcd: EtcdServer, authority: Path) -> None:
    """Where etcd has users, one without a password logs in by the name in its certificate."""
    ca, cert, key = (str(authority / name) for name in ("ca.pem", "client.pem", "client.key"))
    access = (f"--cacert={ca}", f"--cert={cert}", f"--key={key}")
    subprocess.run(
        [ROLES, "--fleet", "edge", "lb1"],
        env={
            **os.environ,
            "ETCDCTL_ENDPOINTS": f"https://{tls_etcd.endpoint}",
            "ETCDCTL_CACERT": ca,
            "ETCDCTL_CERT": cert,
            "ETCDCTL_KEY": key,
        },
        check=True,
        capture_output=True,
        timeout=60,
    )
    for words in (
        ("user", "add", "root:r00t"),
        ("user", "grant-role", "root", "root"),
        ("user", "add", "client", "--no-password"),
        ("user", "grant-role", "client", ROLE),
        ("auth", "enable"),
    ):
        tls_etcd.ctl(*access, *words)
    chosen = EtcdSettings(endpoints=(tls_etcd.endpoint,), ca=ca, cert=cert, key=key)
    follower = Follower(chosen)
    connection = Etcd(chosen)
    try:
        tls_etcd.ctl(*access, *ROOT, "put", PREFIX + "vips/a", "1")
        follower.key("vips/a")
        connection.put(b"/tidegate/edge/status/lb1", b"{}", connection.grant(60))
        with pytest.raises(CallFailed, match="permission denied"):
            connection.put(b"/tidegate/edge/status/lb2", b"{}")
    finally:
        connection.close()
        assert follower.watch.stop()


def test_a_flip_while_certificates_are_replaced_is_made_up_for(
    tls_etcd: EtcdServer, authority: Path
) -> None:
    """A new release takes a new connection, and its files may be missing for a moment."""
    ca, cert, key = (str(authority / name) for name in ("ca.pem", "client.pem", "client.key"))
    access = (f"--cacert={ca}", f"--cert={cert}", f"--key={key}", "put")
    chosen = EtcdSettings(
        endpoints=(tls_etcd.endpoint,), ca=ca, cert=cert, key=key, fatal_retry=0.3
    )
    views: Received[View] = Received()
    states: Received[WatchState] = Received()
    me = LocalHost("lb1", None, "live")
    steered = follower.Follower(chosen, "edge", me, Accepted(), views, states)
    steered.start()
    try:
        views.wait(lambda view: view.steering.release == "live")
        (authority / "client.pem").rename(authority / "away.pem")
        away = (*access[:1], f"--cert={authority / 'away.pem'}", *access[2:])
        tls_etcd.ctl(*away, "/tidegate/edge/tracks/stable", '{"release": "r2"}')
        states.wait(lambda state: "client.pem" in state.reason)
        (authority / "away.pem").rename(authority / "client.pem")
        views.wait(lambda view: view.steering.release == "r2")
    finally:
        assert steered.stop()


def test_another_authority_is_not_trusted(tls_etcd: EtcdServer, authority: Path) -> None:
    """A server whose certificate our CA did not sign is never talked to."""
    other = ("-x509", "-keyout", "other.key", "-out", "other.pem", "-subj", "/CN=other")
    openssl(authority, "req", "-newkey", "rsa:2048", "-nodes", *other)
    ca = str(authority / "other.pem")
    follower = Follower(EtcdSettings(endpoints=(tls_etcd.endpoint,), ca=ca))
    try:
        follower.phase("reconnecting")
        assert follower.snapshots.items == []
    finally:
        assert follower.watch.stop()


def test_a_tls_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The agent's start fails with the path, not later with a puzzle."""
    with pytest.raises(ConfigError, match=r"nothing\.pem"):
        Etcd(EtcdSettings(ca=str(tmp_path / "nothing.pem")))


@pytest.fixture
def documented(etcd: EtcdServer) -> EtcdServer:
    """Give an etcd on which a shell ran every command of docs/keyspace.md, in the page's order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    script = "".join(blocks)
    done = subprocess.run(
        ["bash", "-euc", f"export ETCDCTL_ENDPOINTS=http://{etcd.endpoint}\n{script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return etcd


def release(etcd: EtcdServer, name: str) -> Desired:
    """Validate a release as an agent does that sees it for the first time; nothing is refused."""
    snapshots: Received[Snapshot] = Received()
    watch = Watch(
        EtcdSettings(endpoints=(etcd.endpoint,)), f"/tidegate/edge/config/{name}/", snapshots
    )
    watch.start()
    try:
        desired, rejections = validate(snapshots.wait(lambda _: True), EMPTY)
    finally:
        assert watch.stop()
    assert rejections == ()
    return desired


def test_the_documented_commands_make_services(documented: EtcdServer) -> None:
    """The releases that the page's commands leave behind are good, and say what the page says."""
    live = release(documented, "live")
    assert {str(vip.address): vip.source_routes for vip in live.vips.values()} == {
        "192.0.2.10": ((ip_network("198.51.100.0/24"), "canary"),)
    }
    backends = {key.name: backend for key, backend in live.backends.items()}
    assert sorted(backends) == ["a", "b", "c"]
    assert str(backends["a"].address) == "198.51.100.17"
    assert (backends["b"].state, live.pools["web"].slow_start) == ("drain", 60)
    assert set(release(documented, "r2").vips) == {"shop"}


def test_the_documented_commands_steer_hosts(documented: EtcdServer) -> None:
    """The page's flips and freezes reach a host: on the new release, and frozen by its own key."""
    chosen = EtcdSettings(endpoints=(documented.endpoint,))
    views: Received[View] = Received()
    steered = follower.Follower(chosen, "edge", LocalHost("lb2", None, "live"), Accepted(), views)
    steered.start()
    try:
        view = views.wait(lambda _: True)
    finally:
        assert steered.stop()
    assert view.steering.rejections == ()
    assert view.steering.release == "r2"
    assert view.steering.freeze == "hosts/lb2 freezes this host: replacing its switch"
