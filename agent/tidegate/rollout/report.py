# SPDX-License-Identifier: Apache-2.0
"""The state of a rollout as text and as JSON. Pure; prints nothing."""

import json
from typing import Any

import msgspec

from tidegate.model.rollout import ENDED, PERMANENT, RolloutDocument
from tidegate.rollout.checks import acknowledges
from tidegate.rollout.fleet import Seen, SeenHost
from tidegate.rollout.orders import movable


def is_driven(document: RolloutDocument, seen: Seen) -> bool:
    """Say whether a rollout is driven, or needs no driver since it has ended or is paused."""
    return document.state in ENDED or document.paused or seen.driver == document.driver


def as_json(document: RolloutDocument, seen: Seen) -> str:
    """Return the document and each host's state, as one line."""
    whole = {**msgspec.to_builtins(document), "is_driven": is_driven(document, seen)}
    return json.dumps({**whole, "hosts": _rows(document, seen)})


def as_text(document: RolloutDocument, seen: Seen) -> str:
    """Return the same as lines for people."""
    wave = f"wave {document.wave + 1} of {len(document.waves)} ({document.waves[document.wave]})"
    lines = [
        f"{document.release}: {document.state}{', paused' if document.paused else ''}, {wave}",
        f"started by {document.started_by} at {document.started_at}, driven by {document.driver}",
    ]
    if not is_driven(document, seen):
        lines.append("that process has ended; `tidegate rollout resume` takes over")
    if document.until:
        lines.append(f"{document.state} until {document.until}")
    if document.reason:
        lines.append(f"reason: {document.reason}")
    if document.state not in ENDED:
        lines.append(f"hosts not moved: {len(movable(document, seen))}")
    rows = [("host", "wave", "from", "on", "state", "digest", "")]
    rows += [
        (
            row["host"],
            str(row["wave"] + 1),
            row["from"],
            row["release"],
            row["state"],
            row["digest"],
            _mark(document, row),
        )
        for row in _rows(document, seen)
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *(table if document.moved else [])])


def _mark(document: RolloutDocument, row: dict[str, Any]) -> str:
    if row["restored"]:
        return "put back" if document.state not in PERMANENT else "on its own track again"
    return "acknowledged" if row["acknowledged"] else ""


def _rows(document: RolloutDocument, seen: Seen) -> list[dict[str, Any]]:
    rows = []
    for moved in document.moved:
        host = seen.hosts.get(moved.host, SeenHost(moved.host, None, None, None))
        status = host.status
        rows.append(
            {
                "host": moved.host,
                "wave": moved.wave,
                "from": moved.track,
                "release": status.release if status else "",
                "state": status.state if status else "no status",
                "digest": status.digest if status else "",
                "reason": status.reason if status else "",
                "acknowledged": acknowledges(document, host),
                "restored": moved.restored,
            }
        )
    return rows
