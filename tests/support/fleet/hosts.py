# SPDX-License-Identifier: Apache-2.0
"""Hosts that follow a real etcd, for tests of the rollout's driver.

A thread reads their keys and writes their statuses, as agents do. What agents make of a release is
tested with agents.
"""

import json
import threading
from types import TracebackType
from typing import Any, Self

from support.etcd.server import EtcdServer
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.store import Fleet, Store
from tidegate.keyspace.etcd.transaction import Conflict, Write
from tidegate.rollout.fleet import KEYS, observe


class Hosts:
    """A context manager: hosts of a fleet that write statuses while it is open."""

    def __init__(self, etcd: EtcdServer, fleet: str, hosts: dict[str, str | None]) -> None:
        """Write the tracks stable and canary, and the hosts' documents."""
        self.fleet = Fleet(EtcdSettings(endpoints=(etcd.endpoint,)), fleet)
        self.store = Store(self.fleet)
        self.names = list(hosts)
        self.answers: dict[str, dict[str, Any]] = {}
        self._stop = threading.Event()
        self._own = Store(self.fleet)
        self._thread = threading.Thread(target=self._follow)
        for track in ("stable", "canary"):
            self.put(f"tracks/{track}", '{"release": "old"}')
        for name, value in hosts.items():
            if value is not None:
                self.put(f"hosts/{name}", value)

    def put(self, key: str, value: str | None) -> None:
        """Write or delete a key, whatever it is."""
        found = self.store.read(key).documents.get(key)
        write = Write(key, value.encode() if value is not None else None, 0)
        done = self.store.commit([write._replace(expected=found.mod_revision if found else 0)])
        assert not isinstance(done, Conflict)

    def value(self, key: str) -> str | None:
        """Return a key's text; None if it is not there."""
        found = self.store.read(key).documents.get(key)
        return found.value.decode() if found else None

    def everything(self) -> dict[str, str]:
        """Return all keys of hosts and tracks."""
        documents = self.store.read("hosts/", "tracks/").documents
        return {key: document.value.decode() for key, document in documents.items()}

    def _follow(self) -> None:
        while not self._stop.wait(0.02):
            seen = observe(self._own.read(*KEYS))
            for name in self.names:
                host = seen.hosts.get(name)
                track = host.track if host and host.document and host.document.track else "stable"
                status = {
                    "release": seen.tracks[track].release,
                    "track": track,
                    "state": "synced",
                    "revision": seen.revision,
                    "digest": str(seen.tracks[track].release),
                    **(self.answers.get(name, {}) if seen.tracks[track].release == "new" else {}),
                }
                last = host.status if host else None
                if (
                    last is None
                    or last.release != status["release"]
                    or last.state != status["state"]
                ):
                    key = f"status/{name}"
                    found = self._own.read(key).documents.get(key)
                    expected = found.mod_revision if found else 0
                    self._own.commit([Write(key, json.dumps(status).encode(), expected)])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for store in (self.store, self._own):
            store.__exit__(None, None, None)
