# SPDX-License-Identifier: Apache-2.0
"""Convert health verdicts between etcd and values: write this host's, and read the fleet's.

A host writes all that it knows; only `healthy` and `unhealthy` are votes. What cannot be read is
not a vote, and is refused by name. What follows from votes is decided elsewhere.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from tidegate.keyspace.documents.decode import decode, shortened
from tidegate.keyspace.documents.timestamps import parse_timestamp
from tidegate.keyspace.paths import is_name
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.health import Vote
from tidegate.model.steering import Health, HealthCode, VerdictDocument
from tidegate.model.values import BackendKey, Rejection, Snapshot

_PARTS = 3
_REMEMBERED: Final = 1 << 16
"""Keys and documents that need not be read again."""
_SHAPE = "the key is not one of Tidegate's; it must be health/<host>/<pool>/<backend>"


def encode(
    state: Health, code: HealthCode, reason: str, since: float, *, has_recovered: bool
) -> bytes:
    """Return a verdict as JSON, its time rounded down to a second, as all hosts read it."""
    document = VerdictDocument(
        state=state,
        code=code,
        reason=shortened(reason, 500),
        since=rfc3339(int(since)),
        recovered=has_recovered,
    )
    return msgspec.json.encode(document)


def votes(
    snapshot: Snapshot,
) -> tuple[dict[str, Mapping[BackendKey, Vote]], tuple[Rejection, ...]]:
    """Return the votes of a fleet by host and backend, and what could not be read.

    Args:
        snapshot: the fleet's verdicts; keys are `<host>/<pool>/<backend>`.
    """
    cast: defaultdict[str, dict[BackendKey, Vote]] = defaultdict(dict)
    rejections: list[Rejection] = []
    for key, document in snapshot.documents.items():
        signed = _signed(key)
        vote = _SHAPE if signed is None else document.refused or _vote(document.value)
        if isinstance(vote, str):
            rejections.append(_refused(key, vote, document.mod_revision))
        elif vote is not None and signed is not None:
            host, backend = signed
            cast[host][backend] = vote
    return dict(cast), tuple(rejections)


@lru_cache(_REMEMBERED)
def _signed(key: str) -> tuple[str, BackendKey] | None:
    """Return whose verdict a key is, and on what; None if it is not a verdict's key."""
    parts = key.split("/")
    if len(parts) != _PARTS or not all(map(is_name, parts[:2])):
        return None
    host, pool, backend = parts
    if not (is_name(backend) or backend.startswith("@")):  # one that lost its name and leaves
        return None
    return host, BackendKey(pool, backend)


@lru_cache(_REMEMBERED)
def _vote(value: bytes) -> Vote | str | None:
    """Return the vote of a document, None if it is not one yet, or why it cannot be read.

    When one verdict changes, thousands do not, and a decision waits for all of them to be read.
    """
    found = decode(value, VerdictDocument)
    if not isinstance(found, VerdictDocument):
        return found[0].reason
    since = parse_timestamp(found.since)
    if isinstance(since, str):
        return f"since {since}"
    if found.state not in ("healthy", "unhealthy"):
        return None
    return Vote(found.state == "healthy", since, found.recovered)


def _refused(key: str, reason: str, revision: int) -> Rejection:
    return Rejection(f"health/{shortened(key)}", "", reason, "schema", revision)
