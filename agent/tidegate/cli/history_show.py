# SPDX-License-Identifier: Apache-2.0
"""Print `tidegate history`, for people and as JSON."""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from tidegate.agent import config
from tidegate.agent.journal import files, line_format, owner, replay
from tidegate.agent.journal.line_format import (
    BaseLine,
    GenerationLine,
    Line,
    OrderLine,
    RefusalLine,
)
from tidegate.cli.history_arguments import Endpoint
from tidegate.dataplane.inspect.pinned import PinnedDataPlane
from tidegate.errors import AgentError
from tidegate.keyspace.paths import backend_key
from tidegate.model.values import Address


def show_lines(options: argparse.Namespace) -> int:
    """Print the lines that match; return 1 if there are none."""
    state_dir = options.state_dir or Path(config.read(options.config).state_dir)
    chosen = [line for line in _all(state_dir) if _is_wanted(line, options.key, options.since)]
    for line in chosen[-options.n :] if options.n else chosen:
        if options.json:
            print(line_format.encode(line).decode(), end="")
        else:
            print("\n".join(described(line)))
    return 0 if chosen else 1


def _all(state_dir: Path) -> list[Line]:
    """Return every line of the journal; of its base lines the first."""
    folder = files.folder_of(state_dir)
    found: list[Line] = []
    faults = 0
    for file in files.read_all(folder):
        if file.fault:
            faults += 1
            print(f"tidegate: the rest of this file is left out: {file.fault}", file=sys.stderr)
        found += file.lines
    if not found:
        if faults:
            raise AgentError(f"nothing of the journal in {folder} can be read")
        raise AgentError(f"there is no journal in {folder}; did an agent with this state_dir run?")
    return found


def _is_wanted(line: Line, key: str | None, since: datetime | None) -> bool:
    if since is not None and datetime.fromisoformat(line.at) <= since:
        return False
    if key is None:
        return not isinstance(line, BaseLine)
    return any(each == key or each.startswith(f"{key}/") for each in _keys(line))


def _keys(line: Line) -> Iterator[str]:
    match line:
        case GenerationLine(cause=cause):
            yield from (change.key for change in cause.keys)
            for verdict in cause.verdicts:
                pool, _, name = verdict.backend.partition("/")
                yield backend_key(pool, name)
        case RefusalLine(refusals=refusals):
            yield from (refusal.key for refusal in refusals)


def described(line: Line) -> list[str]:
    """Return a line of the journal for people: one line, and indented ones below it."""
    match line:
        case BaseLine():
            return [f"{line.at}  the journal begins with generation {line.number}"]
        case OrderLine():
            return [f"{line.at}  {line.order} by {line.by}" + _why(line.reason)]
        case RefusalLine():
            head = f"{line.at}  refused, {line.number} stays (revision {line.revision})"
            more = [f"    and {line.left_out} more"] if line.left_out else []
            return [head, *(f"    {_refusal(each)}" for each in line.refusals), *more]
        case GenerationLine():
            head = (
                f"{line.at}  generation {line.number}  release {line.release or '?'}, "
                f"revision {line.revision}, digest {line.digest[:8]}"
            )
            return [head, *(f"    {each}" for each in _details(line))]


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""


def _refusal(each: line_format.Refusal) -> str:
    place = f"{each.key}: {each.field}" if each.field else each.key or "the whole"
    return f"{place} ({each.stage}): {each.reason}"


def _verdict(each: line_format.HealthFinding) -> str:
    """Return a verdict for people."""
    what = "out" if each.is_out else "in"
    whose = f"{each.state} by {each.votes} of {each.voters} votes" if each.state else "no verdict"
    if each.state == "unhealthy" and not each.is_out:
        whose += ", and kept"
    here = f"; this host: {each.reason}" if each.reason else ""
    return f"{each.backend} {what}: {whose}{here}"


def _details(line: GenerationLine) -> Iterator[str]:
    cause = line.cause
    if cause.keys:
        listed = ", ".join(
            f"{c.key} ({f'revision {c.mod_revision}' if c.mod_revision else 'deleted'})"
            for c in cause.keys[:20]
        )
        more = len(cause.keys) - 20 + cause.left_out
        yield f"keys: {listed}" + (f" and {more} more" if more > 0 else "")
    elif cause.what:
        yield f"{cause.kind}: {cause.what}"
    yield from (f"health: {_verdict(each)}" for each in cause.verdicts[:20])
    unsaid = len(cause.verdicts[20:]) + cause.verdicts_left_out
    if unsaid:
        yield f"health: {unsaid} more"
    summary = line.summary
    for what, names in (
        ("VIPs", summary.vips),
        ("pools", summary.pools),
        ("backends", summary.backends),
    ):
        signs = zip("+-~", (names.added, names.removed, names.changed), strict=True)
        parts = [f"{sign}{name}" for sign, group in signs for name in group]
        if parts:
            more = len(parts) - 20 + names.left_out
            yield f"{what}: {' '.join(parts[:20])}" + (f" and {more} more" if more > 0 else "")
    for pool, moved in summary.moved.items():
        yield f"moved: {pool} {moved.slots} slots (at least {moved.minimum})"


def show_owner(options: argparse.Namespace) -> int:
    """Print which backend had a flow; return 1 if none did."""
    settings = config.read(options.config)
    there = _all(options.state_dir or Path(settings.state_dir))
    flow = owner.Flow(options.protocol, *_both(options.client, options.vip))
    at: datetime = options.at

    def history() -> Iterator[replay.Standing]:
        for standing in replay.standings(there):
            if datetime.fromisoformat(standing.line.at) <= at:
                yield standing

    last = deque(history(), maxlen=1)
    if not last:
        raise AgentError(f"the journal begins later, at {there[0].at}")
    seed = _seed(settings, last[0].line.seed)
    build = settings.build()
    if seed is not None:
        build = replace(build, hash_seed=seed.encode())
    keys = build.settings()
    found = owner.owner(history, keys, seed, flow, int(at.timestamp()))
    if found is None:
        print(f"generation {last[0].line.number} (since {last[0].line.at}) had no such VIP")
        return 1
    _print(found, as_json=options.json)
    return 0


def _both(client: Endpoint, vip: Endpoint) -> tuple[Address, int, Address, int]:
    if client.address.version != vip.address.version:
        raise AgentError("the client and the VIP are of different families")
    return client.address, client.port, vip.address, vip.port


def _seed(settings: config.AgentConfig, fingerprint: str) -> str | None:
    """Return the seed of the flow hash at that time if the pins have it; None for the file's.

    Raises:
        AgentError: it is not known any more.
    """
    if not fingerprint:
        return None
    with PinnedDataPlane(Path(settings.pin_dir)) as pinned:
        seed = pinned.generation().hash_seed
    if line_format.fingerprint(seed) != fingerprint:
        raise AgentError(
            "the release had another hash_seed then than the one in force, and the journal keeps "
            "none: which slot a flow had is no longer known"
        )
    return seed


def _print(found: owner.Owner, *, as_json: bool) -> None:
    if as_json:
        value = asdict(found)
        value |= {k: str(v) for k in ("current", "fallback") if (v := getattr(found, k))}
        print(json.dumps(value))
        return
    print(f"generation {found.generation}, in force since {found.at}")
    if found.pool is None:
        print(f"VIP {found.vip}: this client is denied")
        return
    print(f"VIP {found.vip}, pool {found.pool}, slot {found.slot}")
    print(f"owner: {found.current or 'nobody'}")
    if found.is_in_transition:
        print(f"owner of flows from before the slot's transition: {found.fallback}")
    if not found.is_certain:
        print(
            "a transition may have been open that began before the journal does: flows from "
            "before it may have had another owner"
        )
