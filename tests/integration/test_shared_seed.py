# SPDX-License-Identifier: Apache-2.0
"""The secret seed of a fleet on a real etcd: made once, shared, and never changed by an upgrade."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from support.etcd.server import EtcdServer, Received
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.shared_seed import SharedSeed
from tidegate.keyspace.follower import Follower
from tidegate.keyspace.steering import Accepted, LocalHost
from tidegate.model.values import View

KEY = "/tidegate-secrets/f/hash-seed"


@contextmanager
def host(etcd: EtcdServer, in_force: str = "", seed: str | None = None) -> Iterator[Received[View]]:
    """Follow as a host that hashes with `in_force`."""
    views: Received[View] = Received()
    settings = EtcdSettings(endpoints=(etcd.endpoint,), relist_interval=1.0)
    follower = Follower(
        settings,
        "f",
        LocalHost("lb1", None, "live", "f"),
        Accepted(hash_seed=seed),
        views,
        seed=SharedSeed("/tidegate", "f", in_force),
    )
    follower.start()
    try:
        yield views
    finally:
        assert follower.stop()


def stored(etcd: EtcdServer) -> str:
    return etcd.ctl("get", "--print-value-only", KEY).strip()


def test_the_first_agents_make_one_secret_together(etcd: EtcdServer) -> None:
    """Ten that start at once agree on 128 random bits, which their first view has."""
    settings = EtcdSettings(endpoints=(etcd.endpoint,))
    found: Received[bytes] = Received()
    start = threading.Barrier(10)

    def agree(connection: Etcd) -> None:
        start.wait(10)
        found(SharedSeed("/tidegate", "f", "").read(connection).value)
        connection.close()

    threads = [threading.Thread(target=agree, args=[Etcd(settings)]) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found.items) == 10
    assert {each.decode() for each in found.items} == {stored(etcd)}
    assert len(bytes.fromhex(stored(etcd))) == 16
    with host(etcd) as views:
        steering = views.wait(lambda _: True).steering
        assert (steering.hash_seed, steering.seed_warning) == (stored(etcd), "")
        assert stored(etcd) not in repr(steering)


def test_an_upgrade_keeps_the_seed_in_force(etcd: EtcdServer) -> None:
    """A host that hashes with the fleet's name goes on so, and so do the others; with a warning."""
    with host(etcd, in_force="f") as views:
        steering = views.wait(lambda _: True).steering
        assert stored(etcd) == "f"
        assert steering.hash_seed is None  # the fleet's name is what it was without one
        assert "change it" in steering.seed_warning


def test_a_new_host_among_older_agents_keeps_their_seed(etcd: EtcdServer) -> None:
    """Verdicts without a seed are those of agents that hash with the fleet's name."""
    etcd.ctl("put", "/tidegate/f/health/lb9/web/b1", "{}")
    with host(etcd) as views:
        assert views.wait(lambda _: True).steering.hash_seed is None
        assert stored(etcd) == "f"


def test_a_seed_that_is_written_is_taken_at_once(etcd: EtcdServer) -> None:
    """With the fleet's key, or at the next list; one that cannot be a seed changes nothing."""
    with host(etcd) as views:
        views.wait(lambda _: True)
        etcd.ctl("put", KEY, "another secret")
        etcd.ctl("put", "/tidegate/f/fleet", "{}")
        views.wait(lambda view: view.steering.hash_seed == "another secret")
        etcd.ctl("put", KEY, "x" * 200)
        broken = views.wait(lambda view: "printable" in view.steering.seed_warning).steering
        assert broken.hash_seed == "another secret"
        etcd.ctl("put", KEY, "a third one")
        views.wait(lambda view: view.steering.hash_seed == "a third one")


def test_a_seed_that_is_deleted_is_written_again(etcd: EtcdServer) -> None:
    """By those who know it: nobody has to hash otherwise."""
    with host(etcd) as views:
        seed = views.wait(lambda _: True).steering.hash_seed
        etcd.ctl("del", KEY)
        etcd.ctl("put", "/tidegate/f/fleet", '{"freeze": true}')
        frozen = views.wait(lambda view: bool(view.steering.freeze)).steering
        assert frozen.hash_seed == seed == stored(etcd)


def test_an_agent_without_the_right_goes_on_and_warns(etcd: EtcdServer) -> None:
    """A role from before the upgrade does not stop it; the seed in force stays."""
    etcd.ctl("user", "add", "root:r00t")
    etcd.ctl("user", "grant-role", "root", "root")
    etcd.ctl("role", "add", "old")
    etcd.ctl("role", "grant-permission", "--prefix=true", "old", "readwrite", "/tidegate/")
    etcd.ctl("user", "add", "lb1:s3cret")
    etcd.ctl("user", "grant-role", "lb1", "old")
    etcd.ctl("auth", "enable")
    password = etcd.data.parent / "password"
    password.write_text("s3cret\n", "utf-8")
    settings = EtcdSettings(endpoints=(etcd.endpoint,), user="lb1", password_file=str(password))
    views: Received[View] = Received()
    seed = SharedSeed("/tidegate", "f", "in force")
    local = LocalHost("lb1", None, "live", "f")
    follower = Follower(settings, "f", local, Accepted(hash_seed="in force"), views, seed=seed)
    follower.start()
    try:
        steering = views.wait(lambda _: True).steering
        assert steering.hash_seed == "in force"
        assert "permission denied" in steering.seed_warning
        assert "roles.sh" in steering.seed_warning
        assert steering.rejections == ()
    finally:
        assert follower.stop()
