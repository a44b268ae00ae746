# SPDX-License-Identifier: Apache-2.0
"""A fleet in memory for the rollout's machine: keys with revisions, and hosts that follow them.

It applies a step as etcd applies a transaction, and lets hosts answer as agents do: a status names
the release that the host's track names. For the machine alone; the driver is tested on real etcd.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from tidegate.keyspace.paths import ROLLOUT_KEY
from tidegate.model.rollout import ENDED, CriteriaDocument, RolloutDocument
from tidegate.model.values import Document, Snapshot
from tidegate.rollout.checks import judge
from tidegate.rollout.fleet import Seen, observe
from tidegate.rollout.machine import advance
from tidegate.rollout.orders import Step, start, track_of

ALL = CriteriaDocument(nack=True, degraded=True, vanished=True, digest=True)
START = 1_800_000_000.0


class World:
    """Keys relative to the fleet, a clock, and hosts.

    Attributes:
        lines: what the steps told.
        answers: by host, what its status says beyond the usual; None is no status.
    """

    def __init__(self, hosts: dict[str, str | None], tracks: dict[str, str] | None = None) -> None:
        """Write hosts with their `hosts` documents, and tracks with their releases."""
        self.documents: dict[str, Document] = {}
        self.revision = 10
        self.now = START
        self.lines: list[str] = []
        self.answers: dict[str, Callable[[str], dict[str, Any] | None]] = {}
        self.names = list(hosts)
        self._since: Any = {}
        for name, release in (tracks or {"stable": "old", "canary": "old"}).items():
            self.put(f"tracks/{name}", json.dumps({"release": release}))
        for name, value in hosts.items():
            if value is not None:
                self.put(f"hosts/{name}", value)
        self.settle()

    def put(self, key: str, value: str | None) -> None:
        """Write or delete a key, as somebody else does."""
        self._write({key: value.encode() if value is not None else None})

    def _write(self, values: dict[str, bytes | None]) -> None:
        self.revision += 1
        for key, value in values.items():
            if value is None:
                self.documents.pop(key, None)
            else:
                self.documents[key] = Document(value, self.revision, self.revision)

    def seen(self) -> Seen:
        """Return the fleet as its keys show it."""
        return observe(Snapshot(self.revision, dict(self.documents)))

    @property
    def rollout(self) -> RolloutDocument:
        """The rollout's document."""
        found = self.seen().rollout
        assert found is not None
        return found

    def make(self, step: Step) -> None:
        """Apply a step; its conditions must hold, since nobody writes between look and step."""
        values = {ROLLOUT_KEY: msgspec.json.encode(step.document)}
        for write in step.writes:
            found = self.documents.get(write.key)
            assert (found.mod_revision if found else 0) == write.expected, write.key
            values[write.key] = write.value
        self._write(values)
        self.lines += step.lines

    def start(self, release: str = "new", waves: str = "canary,50%,100%", **options: Any) -> None:
        """Begin a rollout.

        Raises:
            ConfigError: it cannot be begun.
        """
        document = RolloutDocument(
            release=release,
            track=track_of(release),
            waves=tuple(waves.split(",")),
            driver="test",
            started_at="2026-01-31T12:00:00Z",
            changed_at="2026-01-31T12:00:00Z",
            **{"abort_on": ALL, **options},
        )
        self.make(start(document, self.seen()))

    def settle(self) -> None:
        """Have every host read its keys and write its status."""
        seen = self.seen()
        for name in self.names:
            key = self.documents.get(f"hosts/{name}")
            fields = json.loads(key.value) if key else {}
            track = fields.get("track") or "stable"
            assert track in seen.tracks or track == "stable", f"{name} is on no track: {track}"
            release = seen.tracks[track].release if track in seen.tracks else "old"
            status = {
                "release": release,
                "track": track,
                "state": "frozen" if fields.get("freeze") else "synced",
                "revision": self.revision,
                "digest": f"of {release}",
            }
            extra = self.answers.get(name, lambda _release: {})(str(release))
            value = None if extra is None else json.dumps({**status, **extra})
            self.put(f"status/{name}", value)

    def look(self) -> None:
        """Have every host see the latest revision, with all else as before."""
        for name, host in self.seen().hosts.items():
            if host.status is not None:
                status = {**msgspec.to_builtins(host.status), "revision": self.revision}
                self.put(f"status/{name}", json.dumps(status))

    def tick(self, seconds: float = 1.0) -> bool:
        """Make the next step, or let time pass; return whether the rollout continues."""
        self.settle()
        seen = self.seen()
        document = self.rollout
        verdict = judge(document, seen, self._since, self.now)
        self._since = verdict.since
        step = advance(document, seen, verdict.failure, self.now)
        if step is None:
            self.now += seconds
        else:
            self.make(step)
        return document.state not in ENDED and not document.paused

    def run(self, until: Callable[[RolloutDocument], bool] = lambda _: False) -> RolloutDocument:
        """Go on to an end, to a pause, or until something holds."""
        for _ in range(2000):
            if until(self.rollout) or not self.tick():
                return self.rollout
        raise AssertionError(f"no end: {self.rollout}, {self.lines}")

    def value(self, key: str) -> str | None:
        """Return a key's text; None if it is not there."""
        found = self.documents.get(key)
        return found.value.decode() if found else None

    def host_values(self) -> dict[str, str | None]:
        """Return the text of each host's key."""
        return {name: self.value(f"hosts/{name}") for name in self.names}

    def releases(self) -> dict[str, str]:
        """Return what each host follows by its status."""
        self.settle()
        return {n: h.status.release for n, h in self.seen().hosts.items() if h.status}


HOSTS = {
    "lb1": '{"track":  "canary"}',
    "lb2": None,
    "lb3": '{ "freeze" : false, "reason":"x" }',
    "lb4": None,
    "lb5": "{}",
    "lb6": None,
}
REFUSAL = {"key": "vips/a", "field": "port", "reason": "port is 0."}


def world(**options: Any) -> World:
    made = World(dict(HOSTS))
    made.start(**options)
    return made


def moved(made: World) -> list[str]:
    return [each.host for each in made.rollout.moved]


def unchanged(made: World) -> None:
    """Assert that everything is as it was before the rollout."""
    assert made.host_values() == HOSTS
    assert made.value("tracks/rollout-new") is None
    assert json.loads(made.value("tracks/stable") or "") == {"release": "old"}
    assert set(made.releases().values()) == {"old"}


def failing(**status: Any) -> Any:
    return lambda release: status if release == "new" else {}
