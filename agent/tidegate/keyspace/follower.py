# SPDX-License-Identifier: Apache-2.0
"""Follow the steering of a host, and the release that it names.

There are two watches: one of the steering keys, and one of a release. They have a thread each, and
meet under one lock, where a `View` is put together and delivered. Why a view can be relied on:

* `snapshot` is one moment of the release that `steering` names, never a mixture of two releases.
* A track's key that flips to another release opens a watch of that release beside the one in use.
  Until that watch has its first list, views keep the old release, and its changes. Then the new one
  takes its place at once, and the old one is stopped. So a flip is one change, whatever its size.
* The first list is read after the flip was, both linearizably; so what one transaction writes into
  a release and flips to it is seen whole. (A list that is older than the flip is from a store that
  was set back in between; it is not used before the steering has been read from that store too.)
* Within a release the order is that of its watch, and steering is as of one revision. Between the
  two there is none: a transaction that changes the release in use and, say, an override may be seen
  as two changes, in either order, a moment apart.

Nothing here validates a release: an empty one is delivered, and the guards refuse it.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tidegate.event_log import EventLog
from tidegate.keyspace import changed_keys, paths
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.shared_seed import SharedSeed
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.etcd.watch_loop import Phase, WatchState
from tidegate.keyspace.etcd.watch_ranges import RangesWatch
from tidegate.keyspace.steering import Accepted, LocalHost, needed_keys, steer
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
class _WatchedRelease:
    """A release that is watched.

    Attributes:
        since: revision of the steering that named it; an older list of it does not count.
        watch: set right after it is made, since the watch needs this object to report to.
    """

    release: str
    pointer: str
    since: int
    watch: Watch | None = None
    snapshot: Snapshot | None = None


class Follower:
    """Delivers views from `start` to `stop`, on threads of its own."""

    def __init__(
        self,
        settings: EtcdSettings,
        fleet: str,
        local: LocalHost,
        in_force: Accepted,
        deliver: Callable[[View], None],
        on_state: Callable[[WatchState], None] = lambda _state: None,
        seed: SharedSeed | None = None,
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is.
            fleet: the fleet.
            local: this host.
            in_force: release in force, as far as the data plane knows it.
            deliver: gets each new view, in order, on threads of the follower; it should be quick.
            on_state: gets each new combined state, on threads of the follower.
            seed: of the flow hash; None where the agent's file has one.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._settings = settings
        self._fleet = fleet
        self._local = local
        self._accepted = in_force
        self._deliver = deliver
        self._on_state = on_state
        self._lock = threading.Lock()
        self._steering: Steering | None = None
        self._current: _WatchedRelease | None = None
        self._pending: _WatchedRelease | None = None
        self._stopping: list[Watch] = []
        self._steering_keys: Mapping[str, Document] | None = None
        self._unread_writes = NO_WRITES
        self._stopped = False
        self._watch = RangesWatch(
            settings,
            paths.fleet_prefix(settings.root, fleet),
            (
                paths.FLEET_KEY,
                paths.host_key(local.host),
                paths.TRACKS_PREFIX,
                paths.OVERRIDES_PREFIX,
            ),
            self._accept_steering,
            lambda _state: self._on_state(self.state),
            lambda documents: needed_keys(documents, local, self._accepted),
            lambda etcd: {paths.SEED_KEY: seed.read(etcd)} if seed else {},
        )

    @property
    def state(self) -> WatchState:
        """The state of the watch that is worst off; one that only begins beside another is well."""
        current, pending = self._current, self._pending
        states = [self._watch.state]
        states += [each.watch.state for each in (current, pending) if each and each.watch]
        if current is not None:
            states = [s for s in states if s.phase != "starting"] or states
        return max(states, key=lambda state: _SEVERITY[state.phase])

    @property
    def last_contact(self) -> float:
        """Monotonic second since when all watches have heard from etcd."""
        current = self._current
        contacts = [self._watch.last_contact]
        contacts += [current.watch.last_contact] if current and current.watch else []
        return min(contacts)

    @property
    def latest_contact(self) -> float:
        """Monotonic second at which any watch has last heard from etcd."""
        current = self._current
        contacts = [self._watch.last_contact]
        contacts += [current.watch.last_contact] if current and current.watch else []
        return max(contacts)

    def start(self) -> None:
        """Start following; once."""
        self._watch.start()

    def stop(self, timeout: float = 5.0) -> bool:
        """End all threads; return whether they ended within `timeout` seconds. May be repeated."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._stopped = True
            watches: list[Watch | RangesWatch] = [self._watch, *self._stopping]
            watches += [e.watch for e in (self._current, self._pending) if e and e.watch]
        for watch in watches:
            watch.stop(0)
        return all(watch.stop(max(0.0, deadline - time.monotonic())) for watch in watches)

    def _accept_steering(self, snapshot: Snapshot) -> None:
        """Accept new steering keys, on their watch's thread."""
        with self._lock:
            if self._stopped:
                return
            steering, self._accepted = steer(snapshot, self._local, self._accepted)
            before, self._steering = self._steering, steering
            choice = (steering.track, steering.release)
            if before is None or (before.track, before.release) != choice:
                log.info(
                    "steering",
                    track=steering.track,
                    release=steering.release,
                    revision=steering.revision,
                )
            self._select_release(steering)
            self._note_writes(snapshot, steering.track)
            self._deliver_view()

    def _note_writes(self, snapshot: Snapshot, track: str) -> None:
        """Remember what was written to the steering keys; other tracks concern other hosts."""
        before, self._steering_keys = self._steering_keys, snapshot.documents
        if before is not None:
            old, new = _relevant(before, track), _relevant(snapshot.documents, track)
            found = changed_keys.between(old, new, snapshot.revision, time.time_ns())
            self._unread_writes = merge(self._unread_writes, found)

    def _select_release(self, steering: Steering) -> None:
        """Make the wanted release the current one, or the pending one."""
        if self._current is not None and self._current.release == steering.release:
            self._current.pointer = steering.pointer
            self._stop_watch(self._pending)
            self._pending = None
        elif self._pending is not None and self._pending.release == steering.release:
            self._pending.pointer = steering.pointer
            self._pending.since = min(self._pending.since, steering.revision)  # a store set back
            self._promote()
        else:
            self._stop_watch(self._pending)
            self._pending = None  # opening may fail, for a certificate that cannot be read just now
            self._pending = self._open(steering)

    def _open(self, steering: Steering) -> _WatchedRelease:
        followed = _WatchedRelease(steering.release, steering.pointer, steering.revision)
        prefix = paths.release_prefix(self._settings.root, self._fleet, steering.release)
        followed.watch = Watch(
            self._settings,
            prefix,
            lambda snapshot: self._accept_release(followed, snapshot),
            lambda _state: self._on_state(self.state),
        )
        followed.watch.start()
        return followed

    def _accept_release(self, followed: _WatchedRelease, snapshot: Snapshot) -> None:
        """Accept a new snapshot of a release, on its watch's thread."""
        with self._lock:
            followed.snapshot = snapshot
            if followed is self._pending:
                self._promote()
            if followed is self._current:
                self._deliver_view(snapshot.writes)

    def _promote(self) -> None:
        """Make the pending release the current one, if it has been read."""
        pending = self._pending
        if pending is None or pending.snapshot is None or pending.snapshot.revision < pending.since:
            return
        self._stop_watch(self._current)
        self._current, self._pending = pending, None

    def _stop_watch(self, followed: _WatchedRelease | None) -> None:
        """Let a watch end by itself: joining its thread here could be joining our own."""
        self._stopping = [watch for watch in self._stopping if not watch.stop(0)]
        if followed is not None and followed.watch is not None and not followed.watch.stop(0):
            self._stopping.append(followed.watch)

    def _deliver_view(self, read: ReceivedWrites = NO_WRITES) -> None:
        """Deliver a view, with what was written to the release.

        What was written to the steering keys may be a flip that waits for its release to be read:
        it is delivered with the view that has it.
        """
        steering, current = self._steering, self._current
        if steering is None or current is None or current.snapshot is None or self._stopped:
            return
        named = replace(steering, release=current.release, pointer=current.pointer)
        if current.pointer and not current.snapshot.documents:
            named = replace(named, rejections=(*named.rejections, _empty(current, named.revision)))
        if self._pending is None:
            read, self._unread_writes = merge(self._unread_writes, read), NO_WRITES
        self._deliver(View(named, current.snapshot, read))


def _relevant(documents: Mapping[str, Document], track: str) -> dict[str, Document]:
    mine = paths.track_key(track)
    return {
        key: document
        for key, document in documents.items()
        if key == mine or not key.startswith(paths.TRACKS_PREFIX)
    }


def _empty(current: _WatchedRelease, revision: int) -> Rejection:
    reason = f"release is {current.release!r}, which has no documents; write some, or name another"
    return Rejection(paths.track_key(current.pointer), "release", reason, "reference", revision)
