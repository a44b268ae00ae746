# SPDX-License-Identifier: Apache-2.0
"""The rollout's state machine: from its state, the fleet and the time to the next step.

Pure: a step is a new document and the writes that go with it. The driver makes them in one
transaction, each conditional on its key being as it was seen, the rollout's own key included. So:

* What the document says was done was done, and nothing else: a driver that dies between two steps
  or in the middle of one leaves a state from which any other can continue.
* Of two drivers, one makes a step, and the other gets a conflict.
* What an operator writes meanwhile is never overwritten: a step on changed keys is not made.

In each state the hosts' documents are as follows, and every host has a track whose key exists:

    moving, waiting, baking   those of `moved` are on the rollout's track, which names the release
    flipping                  the same, and all hosts with a status are in `moved`
    restoring                 the pointers of the tracks they came from name the release too, so
                              that putting a host's document back changes nothing for it
    putting-back              the pointers are what they were, so that it takes the release back

In the end the rollout's track is deleted, once no host is on it.
"""

from datetime import datetime
from typing import Final

from msgspec.structs import replace

from tidegate.keyspace.etcd.transaction import Write
from tidegate.keyspace.paths import host_key, track_key
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.rollout import ENDED, MovedHost, RolloutDocument
from tidegate.rollout.checks import acknowledges, baseline, moved_hosts, others
from tidegate.rollout.fleet import Seen, SeenHost
from tidegate.rollout.orders import Step, chosen, counted, names, pause, put_back, unusable
from tidegate.rollout.waves import Wave, parse_wave
from tidegate.rollout.writes import (
    edit_put_back,
    is_edited,
    is_ours,
    moving_write,
    original_of,
    pointing,
)

BATCH: Final = 100
"""Hosts in one step: a transaction has at most 128 writes."""
_SHOWN: Final = 3


def advance(  # noqa: PLR0911 - one for each state
    document: RolloutDocument, seen: Seen, failure: str, now: float
) -> Step | None:
    """Return the next step, or None if there is nothing to do but wait.

    Args:
        document: the rollout, as `seen` has it.
        seen: the fleet.
        failure: why it has failed, by `checks.judge`; empty if it has not.
        now: wall-clock seconds.
    """
    if document.paused or document.state in ENDED:
        return None
    if document.state in ("moving", "waiting", "baking", "flipping"):
        if failure:
            return put_back(document, "failed", failure, now)
        intervention = _intervention(document, seen)
        if intervention:
            return pause(document, intervention, now)
    match document.state:
        case "moving":
            return _move(document, seen, now)
        case "waiting":
            return _wait(document, seen, now)
        case "baking":
            return _bake(document, seen, now)
        case "flipping":
            return _flip(document, seen, now)
        case _:
            return _restore(document, seen, now)


def _move(document: RolloutDocument, seen: Seen, now: float) -> Step:
    """Put the next hosts of the wave on the rollout's track; when there are none, wait."""
    label = _label(document)
    hosts = chosen(document, seen, parse_wave(document.waves[document.wave]))[:BATCH]
    if not hosts:
        return _all_moved(document, now)
    fault = unusable(hosts, seen)
    if fault:
        return pause(document, fault, now)
    moved = [
        MovedHost(
            host=host.name,
            wave=document.wave,
            track=host.track,
            original=host.key.value.decode() if host.key else None,
        )
        for host in hosts
    ]
    pointers = {host.track: seen.pointer(host.track) for host in hosts}
    changed = replace(
        document,
        moved=(*document.moved, *moved),
        pointers={**pointers, **document.pointers},
        baseline=baseline(others(document, seen), document.baseline),
        changed_at=rfc3339(now),
    )
    writes = [
        moving_write(document, each, host.key.mod_revision if host.key else 0)
        for each, host in zip(moved, hosts, strict=True)
    ]
    return Step(changed, tuple(writes), (f"{label}: moved {names(h.name for h in hosts)}",))


def _all_moved(document: RolloutDocument, now: float) -> Step:
    """Wait for the wave's hosts; go on at once if earlier waves moved as many, so it has none."""
    if any(moved.wave == document.wave for moved in document.moved):
        return _await(document, now)
    label = _label(document)
    following = _next(document, f"{label}: earlier waves moved as many hosts", now)
    if following.document.state == "flipping" and not document.moved:
        return pause(document, f"{label}: there are no hosts that could be moved now", now)
    if parse_wave(document.waves[document.wave]).kind == "track":
        # It was to be tried there first; whether to continue without that is the operator's choice.
        reason = (
            f"{label}: none of its hosts can be moved now; `resume` continues without this trial"
        )
        return pause(following.document, reason, now)
    return following


def _await(document: RolloutDocument, now: float, line: str = "") -> Step:
    until = rfc3339(now + document.timeout)
    changed = replace(document, state="waiting", until=until, changed_at=rfc3339(now))
    return Step(changed, (), (line,) if line else ())


def _wait(document: RolloutDocument, seen: Seen, now: float) -> Step | None:
    """Start baking once every moved host has the release in force; fail if one is too late."""
    missing = unacknowledged(document, seen)
    label = _label(document)
    if not missing:
        until = rfc3339(now + document.bake)
        changed = replace(document, state="baking", until=until, changed_at=rfc3339(now))
        count = sum(not moved.restored for moved in document.moved)
        line = f"{label}: in force on {counted(count)}; baking {document.bake} s"
        return Step(changed, (), (line,))
    if document.until is None or now >= _seconds(document.until):
        shown = "; ".join(_difference(document, host) for host in missing[:_SHOWN])
        reason = f"{counted(len(missing))} late, not acknowledged in {document.timeout} s: {shown}"
        return put_back(document, "failed", reason, now)
    return None


def _bake(document: RolloutDocument, seen: Seen, now: float) -> Step | None:
    """Continue with the next wave when the time is over and all hosts still acknowledge."""
    if document.until is not None and now < _seconds(document.until):
        return None
    label = _label(document)
    missing = unacknowledged(document, seen)
    if missing:  # an agent that is restarting, or something that is not a criterion
        shown = "; ".join(_difference(document, host) for host in missing[:_SHOWN])
        return _await(document, now, f"{label}: some hosts no longer acknowledge: {shown}")
    return _next(document, f"{label}: good", now)


def _next(document: RolloutDocument, line: str, now: float) -> Step:
    last = document.wave + 1 == len(document.waves)
    changed = replace(
        document,
        state="flipping" if last else "moving",
        wave=document.wave if last else document.wave + 1,
        until=None,
        changed_at=rfc3339(now),
    )
    return Step(changed, (), (line,))


def _flip(document: RolloutDocument, seen: Seen, now: float) -> Step:
    """Point the tracks that hosts came from at the release, all in one transaction."""
    left = chosen(document, seen, Wave("share", amount=100.0))
    if left:  # hosts that have appeared since the last wave
        return Step(replace(document, state="moving", changed_at=rfc3339(now)))
    tracks = sorted({moved.track for moved in document.moved if not moved.restored})
    writes = [
        Write(
            track_key(track),
            pointing(seen.tracks[track].key.value if track in seen.tracks else None, document),
            seen.tracks[track].key.mod_revision if track in seen.tracks else 0,
        )
        for track in tracks
    ]
    changed = replace(document, state="restoring", changed_at=rfc3339(now))
    return Step(changed, tuple(writes), (f"{names(tracks)} now at {document.release}",))


def _restore(document: RolloutDocument, seen: Seen, now: float) -> Step:
    """Restore hosts' documents, a batch in each step; then delete the rollout's track."""
    todo = [moved for moved in document.moved if not moved.restored][:BATCH]
    if not todo:
        return _end(document, seen, now)
    writes, lines = [], []
    for moved in todo:
        write, line = _restored(document, moved, seen.hosts.get(moved.host))
        writes += [write] if write else []
        lines += [line] if line else []
    done = {moved.host for moved in todo}
    changed = replace(
        document,
        moved=tuple(replace(m, restored=True) if m.host in done else m for m in document.moved),
        changed_at=rfc3339(now),
    )
    what = "on their own tracks again" if document.state == "restoring" else "put back"
    return Step(changed, tuple(writes), (f"{what}: {names(sorted(done))}", *lines))


def _restored(
    document: RolloutDocument, moved: MovedHost, host: SeenHost | None
) -> tuple[Write | None, str]:
    """Return the write that restores a host's document, if any, and a line to report, if any."""
    if host is not None and host.key is not None:
        key, expected = host_key(moved.host), host.key.mod_revision
        if is_ours(document, moved, host):
            return Write(key, original_of(moved), expected), ""
        if is_edited(document, host):
            value = edit_put_back(moved, host.key.value)
            line = f"{moved.host}: its document was changed; only its track is put back"
            return Write(key, value, expected), line
    return None, f"{moved.host}: its document was changed; it is left as it is"


def _end(document: RolloutDocument, seen: Seen, now: float) -> Step:
    state = "done" if document.state == "restoring" else document.outcome
    reason = "" if state == "done" else document.reason
    ended = replace(document, state=state, reason=reason, changed_at=rfc3339(now))
    track = seen.tracks.get(document.track)
    line = f"{state}: {document.release}" if state == "done" else f"{state}: {document.reason}"
    if track is None:
        return Step(ended, (), (line,))
    on_it = [host.name for host in seen.hosts.values() if is_edited(document, host)]
    if on_it or track.release != document.release:
        why = f"{names(on_it)} are on it" if on_it else "it was changed"
        return Step(ended, (), (f"the track {document.track} stays: {why}", line))
    return Step(ended, (Write(track_key(document.track), None, track.key.mod_revision),), (line,))


def _intervention(document: RolloutDocument, seen: Seen) -> str:
    """Say what operators have changed meanwhile that must not be overwritten, if anything."""
    for moved in document.moved:
        host = seen.hosts.get(moved.host)
        if moved.restored:
            continue
        if not is_ours(document, moved, host):
            how = f"at revision {host.key.mod_revision}" if host and host.key else "and is gone"
            return (
                f"{host_key(moved.host)} was changed by somebody else {how}; `resume` continues "
                "with it as it is, `abort` puts the other hosts back"
            )
        if host is not None and host.status is not None and host.status.state == "frozen":
            return f"{moved.host} is frozen: {host.status.reason}; `resume` once it is thawed"
    for track, before in document.pointers.items():
        now = seen.pointer(track)
        if now != before:
            return (
                f"{track_key(track)} was changed by somebody else, from {before} to {now}; "
                "`resume` continues, and it will name the rollout's release in the end"
            )
    own = seen.tracks.get(document.track)
    if own is None or own.release != document.release:
        return f"{track_key(document.track)} no longer names {document.release}"
    return ""


def unacknowledged(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """Return hosts that were moved and have not acknowledged the release."""
    return [h for h in moved_hosts(document, seen) if not acknowledges(document, h)]


def _difference(document: RolloutDocument, host: SeenHost) -> str:
    status = host.status
    if status is None:
        return f"{host.name} has no status"
    if status.release != document.release:
        return f"{host.name} is on {status.release}"
    return f"{host.name} is {status.state}: {status.reason}"


def _label(document: RolloutDocument) -> str:
    text = document.waves[document.wave]
    return f"wave {document.wave + 1} of {len(document.waves)} ({text})"


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
