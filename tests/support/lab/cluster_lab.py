# SPDX-License-Identifier: Apache-2.0
"""A lab on a cluster of three, with traffic through it and a roster that never rests.

`settle` is the judgement after a fault: the agent is in force and in time, the kernel holds what a
fresh agent's kernel holds, and no client has noticed anything.
"""

import json
import random
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from support.lab.repeated import RepeatedAction
from support.packets import kernel_contents
from tidegate.errors import LabError
from tidegate.keyspace import paths
from tidegate.lab.agents import FLEET, ROOT, AgentProcess, config_path
from tidegate.lab.control import Control
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab
from tidegate.lab.roster import POOL4, POOL6, SPARE, Roster
from tidegate.lab.traffic import Traffic

HOST = "lb1"
FRESH = "lbfresh"
"""Begins the names of hosts whose agents are started for comparison; `lb` has the lab remove their
pins. Each has a name of its own: a restored store may know the one before as alive."""
MEMBERS = ("ctl", "ctl2", "ctl3")
LIMIT = 15.0
"""Seconds from the end of a fault to the last document being in force."""


class Churn(RepeatedAction):
    """Changes the roster again and again, from `with` to its end. Lost writes are tried anew."""

    def __init__(self, roster: Roster, seed: int) -> None:
        super().__init__(0.05)
        self._roster = roster
        self._random = random.Random(seed)  # noqa: S311 - reproducible, not secret

    def once(self, number: int) -> bool:  # noqa: ARG002 - all are alike
        """Make one change."""
        try:
            self._change()
        except LabError:  # etcd is what is being ill-treated
            return False
        return True

    def _change(self) -> None:
        """One random change that no established connection may notice."""
        choose, roster = self._random, self._roster
        pool, family = choose.choice(((POOL4, 4), (POOL6, 6)))
        match choose.randrange(4):
            case 0:
                backend = choose.choice(("b1", "b2", "b3", "b4"))
                roster.change(pool, backend, weight=choose.randrange(50, 300))
            case 1:
                state = choose.choice(("drain", "active"))
                roster.change(pool, "b1", state=state)
            case 2:
                second = choose.random() < 0.5
                roster.change(pool, "b3", address=roster.address("b3", family, second=second))
            case 3 if (pool, SPARE) in roster.documents and choose.random() < 0.5:
                roster.control.delete(paths.backend_key(pool, SPARE))
                del roster.documents[pool, SPARE]
            case _:
                weight = choose.randrange(50, 300)
                roster.change(pool, SPARE, address=roster.address(SPARE, family), weight=weight)


class ClusterLab:
    """The lab, its roster, its agent on lb1 and the traffic."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.roster = Roster(lab, Control(lab))
        self._seed = 0
        self._traffic: Traffic | None = None

    @property
    def agent(self) -> AgentProcess:
        """The agent on lb1."""
        return self.lab.agents[HOST]

    def churn(self) -> Churn:
        """Return a roster that never rests, each time with other changes."""
        self._seed += 1
        return Churn(self.roster, self._seed)

    def watch_clients(self, traffic: Traffic) -> None:
        """Hold it against every fault from here on if one of these clients notices anything."""
        self._traffic = traffic

    # etcd

    def kill_etcd(self, *names: str) -> None:
        """SIGKILL for these members."""
        for name in names:
            self.lab.etcds[name].kill()
            self.lab.etcds[name].wait(10)

    def start_etcd(self, *names: str) -> None:
        """Start these members again, and wait until they are healthy."""
        for name in names:
            self.lab.start_etcd(name)
        for name in names:
            self.lab.wait_for_etcd(name)

    def leader(self) -> str:
        """Name of the member that leads."""
        for name in MEMBERS:
            with suppress(LabError):
                status = self._member(name)
                if status["leader"] == status["header"]["member_id"]:
                    return name
        raise AssertionError("no member says that it leads")

    def lead(self, name: str) -> None:
        """Make a member lead."""
        leader = self.leader()
        if leader != name:
            member = self._member(name)["header"]["member_id"]
            self.lab.node(leader).run(["etcdctl", "move-leader", f"{member:x}"])

    def _member(self, name: str) -> dict[str, Any]:
        """Return what a member says of itself, asked on its own node."""
        command = ["etcdctl", "--command-timeout=1s", "-w", "json", "endpoint", "status"]
        status: dict[str, Any] = json.loads(self.lab.node(name).run(command).stdout)[0]["Status"]
        return status

    # the agent's status

    def status(self, host: str = HOST) -> dict[str, Any] | None:
        """Return a host's status; None if there is none, or if etcd does not answer."""
        with suppress(LabError):
            key = paths.status_key(ROOT, FLEET, host)
            found = self.lab.etcdctl("--command-timeout=2s", "get", "--print-value-only", key)
            if found:
                status: dict[str, Any] = json.loads(found)
                return status
        return None

    def wait(
        self,
        what: str,
        accept: Callable[[dict[str, Any] | None], bool],
        timeout: float = LIMIT,
        host: str = HOST,
    ) -> dict[str, Any]:
        """Return the first accepted status, asking for it again and again as an operator does.

        For the absence of a status, `{}` is returned.
        """
        deadline = time.monotonic() + timeout
        while not accept(status := self.status(host)):
            assert time.monotonic() < deadline, (
                f"{host} did not report {what} within {timeout:g} s, but {json.dumps(status)}\n"
                f"{self.agent.tail(30)}"
            )
            time.sleep(0.1)  # a watch of our own would suffer from the fault as well
        return status or {}

    # the judgement

    def settle(self) -> dict[str, Any]:
        """Require that everything is as it should be, now that a fault is over; the status."""
        began = time.monotonic()
        while True:
            try:
                mark = self.roster.change(POOL4, "b2", weight=100 + int(began * 1000) % 1000)
                break
            except LabError:
                assert time.monotonic() < began + LIMIT, "etcd does not take writes"
        status = self.wait(
            f"revision {mark.revision} in force",
            lambda s: s is not None and is_in_force(s, mark.revision),
            began + LIMIT - time.monotonic(),
        )
        self.compare(status)
        self.ask_clients()
        return status

    def compare(self, status: dict[str, Any]) -> None:
        """Require that a fresh agent makes the same of the same keys."""
        name = f"{FRESH}{secrets.token_hex(3)}"
        fresh = self._start_fresh(name)
        try:
            other = self.wait(
                "the same revision",
                lambda s: s is not None and is_in_force(s, status["generation_revision"]),
                30,
                name,
            )
            assert other["digest"] == status["digest"]
            ours = kernel_contents.read(self.lab.spec.pin_dir(HOST))
            theirs = kernel_contents.read(self.lab.spec.pin_dir(name))
            assert ours.vips == theirs.vips
            assert ours.backends == theirs.backends
            assert ours.tables == theirs.tables
            assert len(ours.tables) == 3
        finally:
            fresh.terminate()
            remove = [sys.executable, "-m", "tidegate.cli.main", "agent", "remove", "-c"]
            fresh.node.run([*remove, str(fresh.config)])

    def _start_fresh(self, name: str) -> AgentProcess:
        """Start an agent without a past, on the control node, where no VIP's packets come by."""
        ours = config_path(self.lab.spec, HOST)
        folder = self.lab.folder(name)
        folder.mkdir(exist_ok=True)
        config = folder / "agent.toml"
        config.write_text(ours.read_text().replace(HOST, name))
        return AgentProcess.start(self.lab.node(CONTROL), config, folder / "agent.log")

    def ask_clients(self) -> None:
        """Require that no client has noticed anything, and that clients are still at it."""
        assert self._traffic is not None
        before = self._traffic.totals()
        now = self._traffic.wait(
            lambda t: t.completed > before.completed + 20, 15, "20 more connections"
        )
        troubles = self._traffic.troubles
        assert troubles == [], f"{len(troubles)} connections, first {troubles[:4]}"
        assert (now.failed, now.reset, now.moved) == (0, 0, 0)


def is_in_force(status: dict[str, Any], revision: int) -> bool:
    """Return whether a status says that this revision is in force, and nothing is refused."""
    return bool(status["state"] == "synced" and status["generation_revision"] >= revision)


def backup(cluster_lab: ClusterLab, path: Path) -> None:
    """Have etcdctl save a snapshot of the store."""
    command = ["etcdctl", "--endpoints=127.0.0.1:2379", "snapshot", "save", str(path)]
    cluster_lab.lab.node(cluster_lab.leader()).run(command)
