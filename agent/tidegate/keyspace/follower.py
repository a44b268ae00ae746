# SPDX-License-Identifier: Apache-2.0
"""Follow what a host shall do: its steering, and whichever release that names.

There are two watches: one of the steering keys, and one of a release. They have a thread each, and
meet under one lock, where a `View` is put together and handed over. Why a view can be relied on:

* `snapshot` is one moment of the release that `steering` names, never a mixture of two releases.
* A pointer that flips opens a watch of the new release beside the one in use. Until that one has
  its first list, views go on to have the old release, and its changes. Then the new one takes its
  place at once, and the old one is stopped. So a flip is one change, whatever its size.
* The first list is read after the flip was, both linearizably; so what one transaction writes into
  a release and flips to it is seen whole. (A list that is older than the flip is from a store that
  was set back in between; it is not used before the steering has been read from that store too.)
* Within a release the order is that of its watch, and steering is as of one revision. Between the
  two there is none: a transaction that changes the release in use and, say, an override may be seen
  as two changes, in either order, a moment apart.

Nothing here judges a release: an empty one is handed over, and the guards refuse it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tidegate.event_log import EventLog
from tidegate.keyspace import changed_keys, paths
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.etcd.watch_loop import Phase, WatchState
from tidegate.keyspace.etcd.watch_ranges import RangesWatch
from tidegate.keyspace.steering import Accepted, LocalHost, steer
from tidegate.model.received_writes import NO_WRITES, ReceivedWrites, merge
from tidegate.model.values import Document, Rejection, Snapshot, Steering, View

log = EventLog(__name__)

_SEVERITY: Final[dict[Phase, int]] = {
    "connected": 0,
    "starting": 1,
    "reconnecting": 2,
    "stale": 3,
    "fatal": 4,
}


@dataclass(eq=False, slots=True)
class _Followed:
    """A release that is watched.

    Attributes:
        since: revision of the steering that named it; an older list of it does not count.
        watch: set right after the making, since the watch needs this object to report to.
    """

    release: str
    pointer: str
    since: int
    watch: Watch | None = None
    snapshot: Snapshot | None = None


class Follower:
    """Hands over views from `start` to `stop`, on threads of its own."""

    def __init__(
        self,
        settings: EtcdSettings,
        fleet: str,
        me: LocalHost,
        in_force: Accepted,
        deliver: Callable[[View], None],
        on_state: Callable[[WatchState], None] = lambda _state: None,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is.
            fleet: the fleet.
            me: the host.
            in_force: release in force, as far as the data plane knows it.
            deliver: gets each new view, in order, on threads of the follower; it should be quick.
            on_state: gets each new combined state, on threads of the follower.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._settings = settings
        self._fleet = fleet
        self._me = me
        self._accepted = in_force
        self._deliver = deliver
        self._on_state = on_state
        self._lock = threading.Lock()
        self._steering: Steering | None = None
        self._live: _Followed | None = None
        self._coming: _Followed | None = None
        self._left: list[Watch] = []
        self._steering_keys: Mapping[str, Document] | None = None
        self._steered = NO_WRITES
        self._stopped = False
        self._watch = RangesWatch(
            settings,
            paths.fleet_prefix(settings.root, fleet),
            (paths.TRACKS_PREFIX, paths.host_key(me.host), paths.FLEET_KEY, paths.OVERRIDES_PREFIX),
            self._steer,
            lambda _state: self._on_state(self.state),
        )

    @property
    def state(self) -> WatchState:
        """The state of the watch that is worst off; one that only begins beside another is well."""
        live, coming = self._live, self._coming
        states = [self._watch.state]
        states += [each.watch.state for each in (live, coming) if each and each.watch]
        if live is not None:
            states = [s for s in states if s.phase != "starting"] or states
        return max(states, key=lambda state: _SEVERITY[state.phase])

    @property
    def last_contact(self) -> float:
        """Monotonic second since when all watches have heard from etcd."""
        live = self._live
        contacts = [self._watch.last_contact]
        contacts += [live.watch.last_contact] if live and live.watch else []
        return min(contacts)

    def start(self) -> None:
        """Start following; once."""
        self._watch.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End all threads; return whether they ended within `timeout` seconds. May be repeated."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopped = True
            watches: list[Watch | RangesWatch] = [self._watch, *self._left]
            watches += [e.watch for e in (self._live, self._coming) if e and e.watch]
        for watch in watches:
            watch.stop(0)
        return all(watch.stop(max(0.0, deadline - time.monotonic())) for watch in watches)

    def _steer(self, snapshot: Snapshot) -> None:
        """New steering keys, on their watch's thread."""
        with self._lock:
            if self._stopped:
                return
            steering, self._accepted = steer(snapshot, self._me, self._accepted)
            before, self._steering = self._steering, steering
            choice = (steering.track, steering.release)
            if before is None or (before.track, before.release) != choice:
                log.info(
                    "steering",
                    track=steering.track,
                    release=steering.release,
                    revision=steering.revision,
                )
            self._choose(steering)
            self._note_writes(snapshot, steering.track)
            self._hand_over()

    def _note_writes(self, snapshot: Snapshot, track: str) -> None:
        """Remember what has arrived in the steering keys; tracks of others concern other hosts."""
        before, self._steering_keys = self._steering_keys, snapshot.documents
        if before is not None:
            old, new = _heeded(before, track), _heeded(snapshot.documents, track)
            found = changed_keys.between(old, new, snapshot.revision, time.time_ns())
            self._steered = merge(self._steered, found)

    def _choose(self, steering: Steering) -> None:
        """Make the release that is wanted the one in use, or the one to come."""
        if self._live is not None and self._live.release == steering.release:
            self._live.pointer = steering.pointer
            self._leave(self._coming)
            self._coming = None
        elif self._coming is not None and self._coming.release == steering.release:
            self._coming.pointer = steering.pointer
            self._coming.since = min(self._coming.since, steering.revision)  # a store set back
            self._promote()
        else:
            self._leave(self._coming)
            self._coming = None  # opening may fail, for a certificate that cannot be read just now
            self._coming = self._open(steering)

    def _open(self, steering: Steering) -> _Followed:
        followed = _Followed(steering.release, steering.pointer, steering.revision)
        prefix = paths.release_prefix(self._settings.root, self._fleet, steering.release)
        followed.watch = Watch(
            self._settings,
            prefix,
            lambda snapshot: self._read(followed, snapshot),
            lambda _state: self._on_state(self.state),
        )
        followed.watch.start()
        return followed

    def _read(self, followed: _Followed, snapshot: Snapshot) -> None:
        """A new snapshot of a release, on its watch's thread."""
        with self._lock:
            followed.snapshot = snapshot
            if followed is self._coming:
                self._promote()
            if followed is self._live:
                self._hand_over(snapshot.writes)

    def _promote(self) -> None:
        """Put the release to come in the place of the one in use, if it has been read."""
        coming = self._coming
        if coming is None or coming.snapshot is None or coming.snapshot.revision < coming.since:
            return
        self._leave(self._live)
        self._live, self._coming = coming, None

    def _leave(self, followed: _Followed | None) -> None:
        """Let a watch end by itself: waiting for its thread here could wait for ourselves."""
        self._left = [watch for watch in self._left if not watch.stop(0)]
        if followed is not None and followed.watch is not None and not followed.watch.stop(0):
            self._left.append(followed.watch)

    def _hand_over(self, read: ReceivedWrites = NO_WRITES) -> None:
        """Hand over a view, with what has arrived in the release.

        What has arrived in the steering keys may be the flip that waits for its release to be
        read: it is told with the view that has it.
        """
        steering, live = self._steering, self._live
        if steering is None or live is None or live.snapshot is None or self._stopped:
            return
        named = replace(steering, release=live.release, pointer=live.pointer)
        if live.pointer and not live.snapshot.documents:
            named = replace(named, rejections=(*named.rejections, _empty(live, named.revision)))
        if self._coming is None:
            read, self._steered = merge(self._steered, read), NO_WRITES
        self._deliver(View(named, live.snapshot, read))


def _heeded(documents: Mapping[str, Document], track: str) -> dict[str, Document]:
    mine = paths.track_key(track)
    return {
        key: document
        for key, document in documents.items()
        if key == mine or not key.startswith(paths.TRACKS_PREFIX)
    }


def _empty(live: _Followed, revision: int) -> Rejection:
    reason = (
        f"release is {live.release!r}, which has no documents; write them, or name another release"
    )
    return Rejection(paths.track_key(live.pointer), "release", reason, "reference", revision)
