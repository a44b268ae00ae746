# SPDX-License-Identifier: Apache-2.0
"""Read the state of a fleet: its hosts, tracks, statuses and the rollout, at one revision.

Pure: documents in, values out. Statuses are read leniently: while a fleet is upgraded, some are
written by agents that know more or fewer fields than this command.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import Struct

from tidegate.errors import KeyspaceError
from tidegate.keyspace.documents.decode import Fault, decode
from tidegate.keyspace.paths import (
    DEFAULT_TRACK,
    DRIVER_KEY,
    ROLLOUT_KEY,
    TRACKS_PREFIX,
    host_key,
)
from tidegate.keyspace.status.document import State
from tidegate.model.rollout import RolloutDocument
from tidegate.model.steering import HostDocument, TrackDocument
from tidegate.model.values import Document, Snapshot

HOSTS_PREFIX: Final = "hosts/"
STATUS_PREFIX: Final = "status/"
KEYS: Final = (ROLLOUT_KEY, DRIVER_KEY, HOSTS_PREFIX, TRACKS_PREFIX, STATUS_PREFIX)
"""The keys to read for `observe`."""


class StatusRefusal(Struct, frozen=True, kw_only=True):
    """The part of a status's refusal that a rollout uses."""

    key: str = ""
    field: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.key, self.field, self.reason)))


class StatusTraffic(Struct, frozen=True, kw_only=True):
    """The part of a status's traffic that a rollout uses."""

    packets_per_second: float = 0.0
    drops: float = 0.0
    misses: float = 0.0


class StatusBackends(Struct, frozen=True, kw_only=True):
    """The part of a status's backends that a rollout uses."""

    total: int = 0
    unhealthy: int = 0


class HostStatus(Struct, frozen=True, kw_only=True):
    """The part of a host's status that a rollout uses."""

    release: str
    state: State
    track: str = DEFAULT_TRACK
    reason: str = ""
    revision: int = 0
    release_revision: int = 0
    generation_release: str = ""
    digest: str = ""
    refusals: tuple[StatusRefusal, ...] = ()
    traffic: StatusTraffic | None = None
    backends: StatusBackends | None = None


@dataclass(frozen=True, slots=True)
class SeenHost:
    """One host.

    Attributes:
        key: its `hosts` document; None if there is none.
        document: its content; None if there is none, or if it is invalid.
        status: None if it has none, so its agent is not running.
    """

    name: str
    key: Document | None
    document: HostDocument | None
    status: HostStatus | None

    @property
    def broken(self) -> bool:
        """Whether its document cannot be used."""
        return self.key is not None and self.document is None

    @property
    def track(self) -> str:
        """The track that it is on: that of its document, else that of its status."""
        wanted = self.document.track if self.document else None
        return wanted or (self.status.track if self.status else DEFAULT_TRACK)


@dataclass(frozen=True, slots=True)
class SeenTrack:
    """A track's key.

    Attributes:
        release: None if its document is invalid.
    """

    key: Document
    release: str | None


@dataclass(frozen=True, slots=True)
class Seen:
    """A fleet at one revision.

    Attributes:
        rollout: its document; None if there is none.
        rollout_revision: mod revision of its key; 0 if there is none.
        driver: process that drives the rollout by its liveness key; empty if none does.
    """

    revision: int
    hosts: Mapping[str, SeenHost]
    tracks: Mapping[str, SeenTrack]
    rollout: RolloutDocument | None
    rollout_revision: int
    driver: str

    def pointer(self, track: str) -> str | None:
        """Return a track's document as text; None if there is none."""
        found = self.tracks.get(track)
        return found.key.value.decode("utf-8", "replace") if found else None

    def release_of(self, host: SeenHost) -> str:
        """Return the release that a host is to follow; empty if it is not known."""
        track = self.tracks.get(host.track)
        if track is not None:
            return track.release or ""
        return host.status.release if host.status else ""


def observe(snapshot: Snapshot) -> Seen:
    """Parse a snapshot of `KEYS`.

    Raises:
        KeyspaceError: there is a rollout, and its document cannot be read.
    """
    documents = snapshot.documents
    names = {
        key[len(prefix) :]
        for prefix in (HOSTS_PREFIX, STATUS_PREFIX)
        for key in documents
        if key.startswith(prefix)
    }
    tracks = {
        key[len(TRACKS_PREFIX) :]: SeenTrack(document, _release(document.value))
        for key, document in documents.items()
        if key.startswith(TRACKS_PREFIX)
    }
    rollout, driver = documents.get(ROLLOUT_KEY), documents.get(DRIVER_KEY)
    return Seen(
        snapshot.revision,
        {name: _host(name, documents) for name in sorted(names)},
        tracks,
        _rollout(rollout.value) if rollout else None,
        rollout.mod_revision if rollout else 0,
        driver.value.decode("utf-8", "replace") if driver else "",
    )


def _host(name: str, documents: Mapping[str, Document]) -> SeenHost:
    key = documents.get(host_key(name))
    document: HostDocument | list[Fault] | None = decode(key.value, HostDocument) if key else None
    status = documents.get(f"{STATUS_PREFIX}{name}")
    return SeenHost(
        name,
        key,
        document if isinstance(document, HostDocument) else None,
        _status(status.value) if status else None,
    )


def _status(value: bytes) -> HostStatus | None:
    try:
        return msgspec.json.decode(value, type=HostStatus)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _release(value: bytes) -> str | None:
    document = decode(value, TrackDocument)
    return document.release if isinstance(document, TrackDocument) else None


def _rollout(value: bytes) -> RolloutDocument:
    try:
        return msgspec.json.decode(value, type=RolloutDocument)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyspaceError(
            f"the key {ROLLOUT_KEY} has no rollout that this version can read: {error}; use the "
            "version that wrote it"
        ) from error
