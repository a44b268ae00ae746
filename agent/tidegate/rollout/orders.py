# SPDX-License-Identifier: Apache-2.0
"""The orders of operators to a rollout: start, pause, resume, abort. Each is one step.

Pure, as the machine whose steps these are: `machine` has the argument.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from msgspec.structs import replace

from tidegate.errors import ConfigError
from tidegate.keyspace.etcd.transaction import Write
from tidegate.keyspace.paths import DEFAULT_TRACK, NAME_RULE, host_key, is_name, track_key
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.rollout import ENDED, PERMANENT, MovedHost, RolloutDocument
from tidegate.rollout.checks import others
from tidegate.rollout.fleet import Seen, SeenHost
from tidegate.rollout.waves import Wave, parse_wave
from tidegate.rollout.writes import edit_put_back, is_edited, is_ours, moving_write, pointing

MAX_POINTERS: Final = 100
"""Tracks that one transaction can flip, with room for the rollout's own key."""
_MAX_REASON: Final = 500
_SHOWN: Final = 8
_TRACK: Final = "rollout-"
_LONGEST_NAME: Final = 63
_MARK: Final = 8


class Step(NamedTuple):
    """A new document, the writes of other keys that go with it, and lines to report for it."""

    document: RolloutDocument
    writes: tuple[Write, ...] = ()
    lines: tuple[str, ...] = ()


def track_of(release: str) -> str:
    """Return the name of a rollout's track: that of its release, shortened if it is long.

    Raises:
        ConfigError: the release's name is not a name.
    """
    if not is_name(release):
        raise ConfigError(f"release is {release!r}; {NAME_RULE}")
    name = f"{_TRACK}{release}"
    if len(name) <= _LONGEST_NAME:
        return name
    mark = hashlib.sha256(release.encode()).hexdigest()[:_MARK]
    return f"{name[: _LONGEST_NAME - _MARK - 1]}-{mark}"


def start(document: RolloutDocument, seen: Seen) -> Step:
    """Start a rollout, with its track.

    Raises:
        ConfigError: it cannot start, and why.
    """
    running = seen.rollout
    if running is not None and running.state not in ENDED:
        raise ConfigError(
            f"a rollout of {running.release} is under way ({running.state}"
            f"{', paused' if running.paused else ''}), started by {running.started_by}; "
            "`tidegate rollout status` shows it, `abort` puts it back"
        )
    if document.track in seen.tracks:
        raise ConfigError(
            f"the key {track_key(document.track)} exists: it is the track of an earlier rollout; "
            "delete it once no host is on it"
        )
    _check_hosts(document, seen)
    lines = [f"rollout of {document.release} in {len(document.waves)} waves, as things stand:"]
    lines += [f"  {text}: {names(hosts) or 'no more'}" for text, hosts in _forecast(document, seen)]
    left_out = [h.name for h in seen.hosts.values() if not _is_present(h)]
    if left_out:
        lines.append(f"left out (frozen, absent or behind): {names(left_out)}")
    value = pointing(None, document)
    return Step(document, (Write(track_key(document.track), value, 0),), tuple(lines))


def _forecast(document: RolloutDocument, seen: Seen) -> Iterator[tuple[str, list[str]]]:
    """Yield which hosts each wave would move if nothing changed."""
    for number, text in enumerate(document.waves):
        hosts = chosen(document, seen, parse_wave(text))
        moved = [MovedHost(host=host.name, wave=number, track=host.track) for host in hosts]
        document = replace(document, moved=(*document.moved, *moved))
        yield text, [host.name for host in hosts]


def _check_hosts(document: RolloutDocument, seen: Seen) -> None:
    free = movable(document, seen)
    if not free:
        there = any(host.status for host in seen.hosts.values())
        raise ConfigError(
            f"there is no host to move: each is frozen, behind its key, or on {document.release}"
            if there
            else "there is no host to move: no agent of this fleet has a status"
        )
    fault = unusable(free, seen)
    if fault:
        raise ConfigError(fault)
    if len({host.track for host in free}) > MAX_POINTERS:
        raise ConfigError(f"the hosts are on more than {MAX_POINTERS} tracks")
    for text in document.waves:
        wave = parse_wave(text)
        if wave.kind == "track" and not any(host.track == wave.track for host in free):
            raise ConfigError(f"wave {text}: no host that could be moved is on the track {text}")


def unusable(hosts: Iterable[SeenHost], seen: Seen) -> str:
    """Say why hosts cannot be moved and put back; empty if they can."""
    for host in hosts:
        if host.broken:
            return f"{host_key(host.name)} cannot be read; rewrite it, or delete it"
        key = track_key(host.track)
        if host.track not in seen.tracks and host.track != DEFAULT_TRACK:
            return f"{host.name} is on the track {host.track}, which has no key; write {key} first"
        if host.track in seen.tracks and seen.tracks[host.track].release is None:
            return f"{key} cannot be read; rewrite it"
    return ""


def pause(document: RolloutDocument, reason: str, now: float) -> Step:
    """Pause before the next step; while hosts are put back, keep the reason for that."""
    kept = document.reason if document.state == "putting-back" else _short(reason)
    changed = replace(document, paused=True, reason=kept, until=None, changed_at=rfc3339(now))
    return Step(changed, (), (f"paused: {reason}",))


def put_back(
    document: RolloutDocument, outcome: Literal["failed", "aborted"], reason: str, now: float
) -> Step:
    """Start to put back all that was moved."""
    changed = replace(
        document,
        state="putting-back",
        outcome=outcome,
        reason=_short(reason),
        paused=False,
        until=None,
        changed_at=rfc3339(now),
    )
    count = sum(not moved.restored for moved in document.moved)
    return Step(changed, (), (f"{outcome}: {reason}", f"putting back {counted(count)}"))


def abort(document: RolloutDocument, driver: str, who: str, now: float) -> Step:
    """Abort by an operator's order: put everything back.

    Raises:
        ConfigError: it is too late, or the rollout has ended.
    """
    if document.state in ENDED:
        raise ConfigError(f"the rollout of {document.release} has ended: {document.state}")
    if document.state in PERMANENT:
        raise ConfigError(
            f"{document.release} is already in force on whole tracks, and only the hosts' own keys "
            "are left to put back; `resume` finishes that, then roll out the previous release"
        )
    step = put_back(document, "aborted", f"aborted by {who}", now)
    return step._replace(document=replace(step.document, driver=driver))


def resume(document: RolloutDocument, seen: Seen, driver: str, now: float) -> Step:
    """Continue with another driver, and with what operators have changed meanwhile.

    Waiting and baking start again. A host that was edited and is still on the rollout's track keeps
    the edit; one that was put on another track is left there for the rest of the rollout.

    Raises:
        ConfigError: it has ended.
    """
    if document.state in ENDED:
        raise ConfigError(f"the rollout of {document.release} has ended: {document.state}")
    changed = replace(
        document,
        state="moving" if document.state in ("waiting", "baking") else document.state,
        paused=False,
        reason=document.reason if document.state == "putting-back" else "",
        driver=driver,
        until=None,
        changed_at=rfc3339(now),
    )
    lines = [f"continuing the rollout of {document.release}"]
    if seen.driver and not document.paused:
        lines.append(f"taking over from {seen.driver}, which was alive a moment ago")
    step = Step(changed, (), tuple(lines))
    if document.state in ("restoring", "putting-back"):
        return step  # these treat edited documents themselves
    return _accept(step, seen)


def _accept(step: Step, seen: Seen) -> Step:
    """Accept what operators have written meanwhile as what to put back."""
    document, kept, left, writes, lines = step.document, [], [], list(step.writes), [*step.lines]
    for moved in document.moved:
        host = seen.hosts.get(moved.host)
        if is_ours(document, moved, host):
            kept.append(moved)
        elif host is not None and host.key is not None and is_edited(document, host):
            original = edit_put_back(moved, host.key.value)
            edited = replace(moved, original=original.decode() if original is not None else None)
            kept.append(edited)
            writes.append(moving_write(document, edited, host.key.mod_revision))
            lines.append(f"{moved.host}: its document was changed; the change stays")
        else:
            left.append(moved.host)
            lines.append(f"{moved.host}: was taken off the rollout's track; it is left there")
    pointers = {track: seen.pointer(track) for track in document.pointers}
    changed = replace(
        document,
        moved=tuple(kept),
        left_out=(*document.left_out, *left),
        pointers=pointers,
    )
    return Step(changed, tuple(writes), tuple(lines))


def movable(document: RolloutDocument, seen: Seen) -> list[SeenHost]:
    """Return hosts that a wave may move: present, not frozen, not moved, on another release."""
    return [
        host
        for host in others(document, seen)
        if _is_present(host)
        and host.name not in document.left_out
        and seen.release_of(host) != document.release
    ]


def _is_present(host: SeenHost) -> bool:
    """Say whether a host can be moved now: its status must show the track of its key."""
    if host.status is None or host.status.state == "frozen":
        return False
    return host.key is None or host.status.revision >= host.key.mod_revision


def chosen(document: RolloutDocument, seen: Seen, wave: Wave) -> list[SeenHost]:
    """Return the hosts that a wave still has to move."""
    free = movable(document, seen)
    if wave.kind == "track":
        return [host for host in free if host.track == wave.track]
    moved = sum(not moved.restored for moved in document.moved)
    return free[: max(0, wave.target(len(free) + moved) - moved)]


def names(found: Iterable[str]) -> str:
    """Return a list of names for a sentence, shortened if it is long."""
    listed: Sequence[str] = list(found)
    shown = ", ".join(listed[:_SHOWN])
    return shown if len(listed) <= _SHOWN else f"{shown} and {len(listed) - _SHOWN} more"


def counted(hosts: int) -> str:
    """Return a number of hosts in words."""
    return "1 host" if hosts == 1 else f"{hosts} hosts"


def _short(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"
