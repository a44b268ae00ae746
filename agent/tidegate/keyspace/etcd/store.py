# SPDX-License-Identifier: Apache-2.0
"""etcd for an operator's command: reads and transactions that are retried for seconds, then fail.

An agent waits for etcd for ever; a person at a prompt wants to know within seconds that it does not
answer, at which endpoints, and why. Keys are relative to the fleet.

A transaction may be made although its answer is lost. It is then sent again, finds its own values
in place of those it expected, and takes that for the answer. Two writers that want the same values
look alike, which does no harm.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeVar

from tidegate.errors import KeyspaceError
from tidegate.keyspace import paths
from tidegate.keyspace.bounds import COMMAND
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.listing import Reading, read_prefix, read_ranges
from tidegate.keyspace.etcd.liveness_key import LivenessKey
from tidegate.keyspace.etcd.retry import rebuild
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.transaction import Committed, Conflict, Write
from tidegate.model.values import Document, Snapshot

T = TypeVar("T")

_PATIENCE: Final = 10.0
"""Seconds for which a command tries to reach etcd: longer than the election of a new leader."""
_PAUSE: Final = 0.3


class Fleet(NamedTuple):
    """Where a fleet's keys are."""

    etcd: EtcdSettings
    name: str


class Store:
    """The keys of one fleet; used by one thread. A context manager that closes its connection.

    Every method that calls etcd raises KeyspaceError when etcd does not answer, or refuses.
    """

    def __init__(self, fleet: Fleet, patience: float = _PATIENCE) -> None:
        """Prepare it; nothing is sent yet.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self.fleet = fleet
        self._prefix = paths.fleet_prefix(fleet.etcd.root, fleet.name)
        self.patience = patience
        self._etcd = Etcd(fleet.etcd)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._etcd.close()

    def read(self, *keys: str) -> Snapshot:
        """Read keys, or prefixes (with a slash at the end), all at one revision, in pages.

        Returns:
            The documents by key relative to the fleet.
        """
        ranges = [paths.key_range(self._prefix + key) for key in keys]

        def read() -> Snapshot:
            reading = Reading(self._etcd, self.fleet.etcd.page_size, self._stop.is_set)
            documents = read_ranges(reading, ranges, len(self._prefix.encode()), COMMAND)
            return Snapshot(reading.history.revision if reading.history else 0, documents)

        return self._patiently(read)

    def read_release(self, release: str) -> Snapshot:
        """Read a release, however large; keys are relative to it.

        Raises:
            ConfigError: the release's name is not a name.
        """
        root, name = self.fleet.etcd.root, self.fleet.name
        return self._read_below(paths.release_prefix(root, name, release))

    def read_verdicts(self) -> Snapshot:
        """Read the verdicts of all hosts on backends; keys are `<host>/<pool>/<backend>`."""
        return self._read_below(paths.verdict_prefix(self.fleet.etcd.root, self.fleet.name))

    def _read_below(self, prefix: str) -> Snapshot:
        listed = self._patiently(
            lambda: read_prefix(
                self._etcd, prefix.encode(), self.fleet.etcd.page_size, self._stop.is_set, COMMAND
            )
        )
        return Snapshot(listed.history.revision, listed.documents)

    def commit(self, writes: Sequence[Write]) -> Committed | Conflict:
        """Make all writes, of keys relative to the fleet, or none; `MAX_WRITES` at most."""
        whole = [write._replace(key=self._prefix + write.key) for write in writes]
        answer = self._patiently(lambda: self._etcd.commit(whole))
        if answer.succeeded:
            return Committed(answer.header.revision)
        found: dict[str, Document | None] = {write.key: None for write in writes}
        for write, response in zip(writes, answer.responses, strict=True):
            for kv in response.response_range.kvs:
                found[write.key] = Document(kv.value, kv.mod_revision, kv.create_revision)
        if _are_made(writes, found):
            return Committed(answer.header.revision)
        changed = [w.key for w in writes if _revision(found[w.key]) != w.expected]
        return Conflict({key: found[key] for key in changed})

    def liveness_key(self, key: str, value: str) -> LivenessKey:
        """Return a liveness key of this process, relative to the fleet."""
        return LivenessKey(self._etcd, self._prefix + key, value)

    def _patiently(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                return call()
            except CallFailed as failure:
                lasting = failure.remedy in (Remedy.OPERATOR, Remedy.LOGIN)
                if lasting or time.monotonic() + _PAUSE > deadline:
                    raise KeyspaceError(self._sentence(failure, lasting=lasting)) from failure
            time.sleep(_PAUSE)
            rebuild(self._etcd, lambda _failure: None)

    def _sentence(self, failure: CallFailed, *, lasting: bool) -> str:
        where = ", ".join(self.fleet.etcd.endpoints)
        if lasting:
            return f"etcd at {where}: {failure.reason}"
        return (
            f"etcd at {where} gave no answer within {self.patience:g} s: {failure.reason}; "
            "is it running, and are these its endpoints? (-c FILE, or --endpoints)"
        )


def _are_made(writes: Sequence[Write], found: Mapping[str, Document | None]) -> bool:
    now = {key: document.value if document else None for key, document in found.items()}
    return all(now[write.key] == write.value for write in writes)


def _revision(document: Document | None) -> int:
    return document.mod_revision if document else 0
