# SPDX-License-Identifier: Apache-2.0
"""Decide from the keys beside the releases what a host does: its release, freezes and overrides.

A pure function of the keys and of what was last accepted: no I/O, no clock. The rules:

* A host's track is that of its `hosts` key, else that of the agent's file, else `stable`. The
  track's key names the release.
* Without a key of its own, `stable` stands for the release of the agent's file (`live`), and so
  does every track while a fleet uses neither `tracks` nor this host's key: a fleet without tracks
  need not know about them.
* Any other track without a key is refused, and the host stays on the release that it has. So is a
  track whose key was deleted, `stable` too: a deleted key must not send hosts to a release that
  nobody has maintained for months.
* An invalid document leaves the last valid one of its key in force. After a restart only the
  release in force and the track that named it are known (they are kept with the tables); they stay.
* A host refuses what concerns it: an invalid key of another track does not degrade this host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct

from tidegate.keyspace.documents.addresses import parse_address
from tidegate.keyspace.documents.decode import decode_kept
from tidegate.keyspace.documents.rejections import Rejections
from tidegate.keyspace.documents.timestamps import parse_timestamp
from tidegate.keyspace.paths import (
    DEFAULT_TRACK,
    FLEET_KEY,
    NAME_RULE,
    OVERRIDES_PREFIX,
    SEED_KEY,
    TRACKS_PREFIX,
    host_key,
    is_name,
    track_key,
)
from tidegate.model.steering import FleetDocument, HostDocument, OverrideDocument, TrackDocument
from tidegate.model.values import Address, Document, Override, Snapshot, Steering

S = TypeVar("S", bound=Struct)

_LONGEST_SEED: Final = 128


class LocalHost(NamedTuple):
    """The host that is steered, and what its agent's file says.

    Attributes:
        track: None if the file names none.
        release: followed where no track names one.
        fleet: its name.
    """

    host: str
    track: str | None
    release: str
    fleet: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was last accepted: it replaces documents that are now invalid.

    Attributes:
        release: last release that was followed; empty if none was.
        pointer: track whose key named it; empty if none did.
        hash_seed: key of the flow hash that was last known.
    """

    release: str = ""
    pointer: str = ""
    host: HostDocument | None = None
    fleet: FleetDocument | None = None
    tracks: Mapping[str, TrackDocument] = field(default_factory=dict)
    overrides: Mapping[str, Override] = field(default_factory=dict)
    hash_seed: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Work:
    """What one pass has found so far."""

    snapshot: Snapshot
    rejections: Rejections

    def read(self, key: str, kind: type[S], last: S | None) -> S | None:
        """Return the document of a key, the last valid one in its place, or None without a key."""
        document = self.snapshot.documents.get(key)
        if document is None:
            return None
        found = decode_kept(document, kind)
        if isinstance(found, list):
            self.rejections.add_all(key, found)
            return last
        return found

    def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix, in order, and refuse other keys there."""
        names = []
        for key in sorted(self.snapshot.documents):
            if key.startswith(prefix):
                name = key[len(prefix) :]
                if is_name(name):
                    names.append(name)
                else:
                    reason = f"a part of the key is not a name: {NAME_RULE}"
                    refused = self.snapshot.documents[key].refused  # a prefix may be, as a whole
                    self.rejections.add(key, "", refused or reason, "schema")
        return names


def steer(snapshot: Snapshot, local: LocalHost, last: Accepted) -> tuple[Steering, Accepted]:
    """Return what a host is to do, and what to pass as `last` the next time.

    Args:
        snapshot: `tracks/`, the host's own key, `fleet` and `overrides/`, relative to the fleet.
        local: the host, and what its agent's file says.
        last: what was accepted the last time; at the start, the release in force if one is known.
    """
    work = _Work(snapshot, Rejections(snapshot))
    host = _host(work, local, last)
    fleet = work.read(FLEET_KEY, FleetDocument, last.fleet)
    tracks = _tracks(snapshot, work, last)
    overrides = _overrides(work, last)
    allowed = _allowed_addresses(work, local, host)
    track = _track(host, local)
    document = work.read(track_key(track), TrackDocument, last.tracks.get(track))
    if document is not None:
        release, pointer = document.release, track
    else:
        release, pointer = _without_key(work, local, track, last)
    seed, warning = _seed(snapshot.documents.get(SEED_KEY), local, last.hash_seed)
    accepted = Accepted(release, pointer, host, fleet, tracks, overrides, seed)
    steering = Steering(
        revision=snapshot.revision,
        track=track,
        release=release,
        pointer=pointer,
        freeze=_freeze(local.host, host, fleet),
        overrides=tuple(overrides[name] for name in sorted(overrides)),
        rejections=work.rejections.ordered(),
        allowed_addresses=allowed,
        hash_seed=seed,
        seed_warning=warning,
    )
    return steering, accepted


def _seed(document: Document | None, local: LocalHost, last: str | None) -> tuple[str | None, str]:
    """Return the key of the flow hash, and what somebody should do about it."""
    if document is None:
        return None, ""
    if document.refused:
        kept = "the one that is in force stays" if last else "the fleet's name stands for it"
        return last, (
            f"the key of the flow hash cannot be agreed upon, and {kept}: {document.refused}; "
            "run deploy/etcd/roles.sh again for the agents' roles, or set hash_seed"
        )
    text = document.value.decode("ascii", "replace")
    if not (text.isascii() and text.isprintable() and 0 < len(text) <= _LONGEST_SEED):
        return last, (
            f"the key of the flow hash at {SEED_KEY} has to be 1 to {_LONGEST_SEED} printable "
            "ASCII characters, so the last one stays; write it again"
        )
    if text == local.fleet:  # what the program is made with where nothing else is known
        return None, (
            "the key of the flow hash is the fleet's name, by which anybody can aim flows at one "
            "backend: change it (docs/keyspace.md, Settings)"
        )
    return text, ""


def needed_keys(
    documents: Mapping[str, Document], local: LocalHost, last: Accepted
) -> tuple[str, ...]:
    """Return keys that a host cannot do without, however many others are beside them.

    Args:
        documents: with the host's own key, if there is one.
        local: the host.
        last: what was last accepted.
    """
    snapshot = Snapshot(0, documents)
    host = _host(_Work(snapshot, Rejections(snapshot)), local, last)
    return (track_key(_track(host, local)),)


def _host(work: _Work, local: LocalHost, last: Accepted) -> HostDocument | None:
    host = work.read(host_key(local.host), HostDocument, last.host)
    if host is None and host_key(local.host) in work.snapshot.documents and last.pointer:
        return HostDocument(track=last.pointer)  # broken since the start
    return host


def _track(host: HostDocument | None, local: LocalHost) -> str:
    return (host.track if host else None) or local.track or DEFAULT_TRACK


def _tracks(snapshot: Snapshot, work: _Work, last: Accepted) -> dict[str, TrackDocument]:
    """Return the last valid documents of all tracks, without refusing those of others."""
    found: dict[str, TrackDocument] = {}
    for name in work.names(TRACKS_PREFIX):
        document = decode_kept(snapshot.documents[track_key(name)], TrackDocument)
        if isinstance(document, TrackDocument):
            found[name] = document
        elif name in last.tracks:
            found[name] = last.tracks[name]
    return found


def _overrides(work: _Work, last: Accepted) -> dict[str, Override]:
    found: dict[str, Override] = {}
    for name in work.names(OVERRIDES_PREFIX):
        key = f"{OVERRIDES_PREFIX}{name}"
        document = work.read(key, OverrideDocument, None)
        expires_at = parse_timestamp(document.expires_at) if document else None
        if isinstance(expires_at, str):
            work.rejections.add(key, "expires_at", f"expires_at {expires_at}", "schema")
        if document is not None and isinstance(expires_at, int):
            found[name] = Override(name, document.guard, document.pool, expires_at)
        elif name in last.overrides:
            found[name] = last.overrides[name]
    return found


def _allowed_addresses(
    work: _Work, local: LocalHost, host: HostDocument | None
) -> tuple[Address, ...]:
    """Return the host's own addresses that VIPs may have, and refuse what is no address."""
    parsed = [parse_address(text) for text in host.allowed_addresses] if host else []
    for reason in parsed:
        if isinstance(reason, str):
            work.rejections.add(
                host_key(local.host), "allowed_addresses", f"an address {reason}", "schema"
            )
    return tuple(address for address in parsed if not isinstance(address, str))


def _without_key(work: _Work, local: LocalHost, track: str, last: Accepted) -> tuple[str, str]:
    """Return the release of a track without a usable key, and the track that named it."""
    key = track_key(track)
    stay = last.release or local.release, last.pointer
    if key in work.snapshot.documents:
        return stay  # broken, and refused already
    if last.pointer == track:
        if last.release != local.release:
            reason = (
                f"the key was deleted while this host is on the track, so it stays on the release "
                f"{last.release}; to go back to {local.release}, write the key with that release"
            )
            work.rejections.add(key, "", reason, "reference")
            return stay
        return local.release, ""
    if track == DEFAULT_TRACK or not _uses_tracks(work.snapshot, local):
        return local.release, ""
    reason = (
        f"the host is on the track {track}, which has no key, and stays on the release "
        f"{stay[0]}; write the key, or put the host on another track"
    )
    work.rejections.add(key, "", reason, "reference")
    return stay


def _uses_tracks(snapshot: Snapshot, local: LocalHost) -> bool:
    keys = snapshot.documents
    return host_key(local.host) in keys or any(key.startswith(TRACKS_PREFIX) for key in keys)


def _freeze(name: str, host: HostDocument | None, fleet: FleetDocument | None) -> str:
    """Say why nothing may change; empty if it may."""
    orders = ((f"{host_key(name)} freezes this host", host), (f"{FLEET_KEY} freezes all", fleet))
    return "; ".join(
        f"{order}: {document.reason}" if document.reason else order
        for order, document in orders
        if document is not None and document.freeze
    )
