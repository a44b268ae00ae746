# SPDX-License-Identifier: Apache-2.0
"""A soak: thousands of random key changes against one real agent, and the accounts of it.

A rack is built with a real etcd and the real program on a veth. What drives it runs on the control
node, as a process of its own: `python -m soak.run SETTINGS` with a JSON object.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from soak.changes import Change, Keyspace
from support.packets import kernel_contents
from tidegate.keyspace import paths
from tidegate.keyspace.documents.validate import validate
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.listing import read_prefix
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.transaction import Write
from tidegate.keyspace.etcd.watch import Watch
from tidegate.lab.agents import FLEET, RELEASE, ROOT
from tidegate.lab.plan import CONTROL, LabSpec
from tidegate.lab.rack import Lab
from tidegate.model.generation import NOTHING
from tidegate.model.values import EMPTY, Snapshot
from tidegate.planner import plan

Report = dict[str, Any]

_HOST = "lb1"
_PREFIX = paths.release_prefix(ROOT, FLEET, RELEASE)
_STATUS_WITHIN = 15.0
_FIRST = 1000
"""Changes after which memory has to be flat."""
_SAMPLE_EVERY = 250
_LINE = re.compile(r"time=(\S+) .*generation number=(\d+) .*?revision=(\d+)")


def soak(count: int, rate: float, seed: int = 1) -> Report:
    """Build a rack, make `count` changes at `rate` a second, and return the figures.

    Raises:
        AssertionError: something was neither in force nor refused by name, or the kernel drifted.
    """
    with Lab(LabSpec(name=f"s{secrets.token_hex(4)}", backends=1)) as lab:
        agent = lab.start_agent(_HOST)
        settings = {
            "count": count,
            "rate": rate,
            "seed": seed,
            "pid": agent.process.pid,
            "log": str(agent.log),
            "pins": str(lab.spec.pin_dir(_HOST)),
        }
        command = [sys.executable, "-m", "soak.run", json.dumps(settings)]
        here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        driver = lab.node(CONTROL).popen(command, env=here, stdout=subprocess.PIPE, text=True)
        with driver:
            printed, _ = driver.communicate(timeout=120 + 4 * count / rate)
        assert driver.returncode == 0, f"the soak failed; the agent's log ends:\n{agent.tail(15)}"
        report: Report = json.loads(printed)
        return report


class Statuses:
    """The agent's status as it comes in, through a watch of our own."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._changed = threading.Condition()
        self.latest: dict[str, Any] = {}
        self.written = 0
        prefix = paths.status_key(ROOT, FLEET, _HOST).removesuffix(_HOST)
        self._watch = Watch(settings, prefix, self._take)
        self._watch.start()

    def _take(self, snapshot: Snapshot) -> None:
        document = snapshot.documents.get(_HOST)
        if document is not None:
            with self._changed:
                self.latest = json.loads(document.value)
                self.written += 1
                self._changed.notify_all()

    def wait(self, what: str, revision: int, timeout: float, *, clean: bool = False) -> None:
        """Wait until the agent has seen a revision, and, if asked for, refuses nothing."""

        def reached() -> bool:
            if not self.latest or self.latest["revision"] < revision:
                return False
            return not clean or self.latest["state"] == "synced"

        with self._changed:
            assert self._changed.wait_for(reached, timeout), f"{what}: {self.latest}"

    def refused(self) -> dict[str, int]:
        """Return revision of the refused write by key."""
        with self._changed:
            assert not self.latest.get("refusals_left_out"), "a status does not list all refusals"
            return {r["key"]: r["revision"] for r in self.latest.get("refusals", ())}

    def stop(self) -> None:
        """Return end the watch."""
        self._watch.stop()


class Driver:
    """Writes, watches and keeps the accounts."""

    def __init__(self, settings: Report) -> None:
        self._settings = settings
        self._etcd_settings = EtcdSettings(endpoints=("127.0.0.1:2379",))
        self._etcd = Etcd(self._etcd_settings)
        self._keyspace = Keyspace(settings["seed"])
        self._revisions: dict[str, int] = {}
        self._wrong: dict[str, int] = {}
        self._written: list[tuple[int, float]] = []
        self._refusals = 0
        self._memory: list[int] = []
        self._statuses = Statuses(self._etcd_settings)

    def run(self) -> Report:
        """Run all of it."""
        self._load()
        cpu, began = self._cpu(), time.monotonic()
        count = self._settings["count"]
        for number in range(count):
            pause = began + number / self._settings["rate"] - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            self._note_refusals()
            self._make(self._keyspace.next())
            if (number + 1) % _SAMPLE_EVERY == 0:
                self._memory.append(self._resident())
        seconds = time.monotonic() - began
        cpu = self._cpu() - cpu
        self._end()
        statuses = self._statuses.written
        self._statuses.stop()
        self._compare()
        self._etcd.close()
        return {
            "changes": count,
            "rate": count / seconds,
            "refused": self._refusals,
            "statuses": statuses,
            "cpu": cpu / seconds,
            "memory": self._memory,
            "documents": len(self._keyspace.documents),
            **self._from_log(count),
        }

    def _load(self) -> None:
        """Write the first keyspace, before anything is counted."""
        writes = [
            Write(_PREFIX + key, json.dumps(document).encode(), 0)
            for key, document in self._keyspace.documents.items()
        ]
        revision = 0
        for at in range(0, len(writes), 100):
            answer = self._etcd.commit(writes[at : at + 100])
            assert answer.succeeded
            revision = answer.header.revision
            for write in writes[at : at + 100]:
                self._revisions[write.key.removeprefix(_PREFIX)] = revision
        self._statuses.wait("the first keyspace", revision, 60, clean=True)

    def _make(self, change: Change) -> None:
        write = Write(_PREFIX + change.key, change.value, self._revisions.get(change.key, 0))
        answer = self._etcd.commit([write])
        assert answer.succeeded, f"somebody else writes {change.key}"
        revision = answer.header.revision
        self._revisions[change.key] = 0 if change.value is None else revision
        if change.wrong:
            self._wrong[change.key] = revision
        else:
            self._wrong.pop(change.key, None)
            self._written.append((revision, time.time()))

    def _note_refusals(self) -> None:
        """Free the keys whose refusal is in the status, by the revision that was refused."""
        refused = self._statuses.refused()
        for key, revision in self._wrong.items():
            if revision and refused.get(key) == revision:
                self._wrong[key] = 0
                self._refusals += 1
                self._keyspace.seen.append(key)

    def _end(self) -> None:
        """Check that all that is wrong is refused by name, and in force once it is repaired."""
        self._statuses.wait("the last write", max(self._revisions.values()), _STATUS_WITHIN)
        deadline = time.monotonic() + _STATUS_WITHIN
        while any(self._wrong.values()):
            assert time.monotonic() < deadline, f"not refused: {self._wrong}"
            time.sleep(0.05)  # for the next status
            self._note_refusals()
        assert self._statuses.refused().keys() == self._keyspace.wrong
        for key in sorted(self._keyspace.wrong):
            self._make(self._keyspace.repair(key))
        self._statuses.wait("the end", self._written[-1][0], _STATUS_WITHIN, clean=True)

    def _compare(self) -> None:
        """Check that the kernel holds what a fresh reader of etcd would plan."""
        documents, history, _ = read_prefix(self._etcd, _PREFIX.encode(), 1000, lambda: False)
        assert {k: json.loads(d.value) for k, d in documents.items()} == self._keyspace.documents
        validation = validate(Snapshot(history.revision, documents), EMPTY)
        assert not validation.rejections
        wished = replace(validation.desired, hash_seed=self._shared_seed())
        generation = plan(wished, NOTHING, int(time.time()))
        assert self._statuses.latest["digest"] == generation.digest
        wanted = kernel_contents.planned(generation)
        there = kernel_contents.read(Path(self._settings["pins"]))
        assert there.vips == wanted.vips
        assert there.backends == wanted.backends
        assert there.tables == wanted.tables

    def _shared_seed(self) -> str:
        """Return the seed that the agent has made, as no document has one."""
        key = paths.seed_key(ROOT, FLEET)
        found, *_ = read_prefix(self._etcd, key.encode(), 1, lambda: False)
        return found[""].value.decode()

    def _resident(self) -> int:
        """Return resident memory of the agent in KiB."""
        text = Path(f"/proc/{self._settings['pid']}/status").read_text()
        return int(text.split("VmRSS:")[1].split()[0])

    def _cpu(self) -> float:
        """Return seconds of CPU that the agent has had."""
        fields = Path(f"/proc/{self._settings['pid']}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _from_log(self, count: int) -> Report:
        """Return generations, and the time from a write's answer to its generation in force."""
        text = Path(self._settings["log"]).read_text()
        applied = [
            (int(found[3]), _seconds(found[1]), int(found[2])) for found in _LINE.finditer(text)
        ]
        revisions = np.array([revision for revision, _, _ in applied])
        first = self._written[0][0]
        lags = []
        for revision, at in self._written:
            place = int(np.searchsorted(revisions, revision))
            if place < len(applied):
                lags.append(max(0.0, applied[place][1] - at))
        generations = int((revisions >= first).sum())
        return {
            "generations": generations,
            "changes_per_generation": count / generations,
            "lag_p50": float(np.percentile(lags, 50)),
            "lag_p99": float(np.percentile(lags, 99)),
            "plan": _mean_milliseconds("plan", text),
            "publish": _mean_milliseconds("publish", text),
            "log_lines": text.count("\n"),
            "log_bytes": len(text),
        }


def _seconds(text: str) -> float:
    """Return wall-clock seconds of a time in the log."""
    return datetime.fromisoformat(text).timestamp()


def _mean_milliseconds(work: str, text: str) -> float:
    """Return mean of a generation's times in the log, the first one left out."""
    return float(np.mean([float(ms) for ms in re.findall(rf"{work}_ms=([0-9.]+)", text)[1:]]))


def growth(report: Report) -> float:
    """Return how much the agent's memory grew after the first changes, in KiB.

    It goes up and down with what is being planned, so medians are compared: of the first and of the
    last quarter of what follows.
    """
    after = report["memory"][_FIRST // _SAMPLE_EVERY - 1 :]
    quarter = max(1, len(after) // 4)
    return float(np.median(after[-quarter:]) - np.median(after[:quarter]))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(Driver(json.loads(sys.argv[1])).run()))
