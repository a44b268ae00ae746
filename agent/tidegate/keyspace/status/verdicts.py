# SPDX-License-Identifier: Apache-2.0
"""Convert health verdicts between etcd and values: write this host's, and read the fleet's.

A host writes all that it knows; only `healthy` and `unhealthy` are votes. What cannot be read is
not a vote, and is refused by name. What follows from votes is decided elsewhere.

Beside its verdicts a host writes, again and again, that all of them are up to date: those that do
not change are not written again, so by themselves they do not say whether anybody stands by them.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

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
_CONFIRMED: Final = "@confirmed"
"""Name of the key of a host's confirmation, where its verdicts have a pool's name."""
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
        by = signed(key)
        if isinstance(by, str):
            rejections.append(refused(key, by, document.mod_revision))
            continue
        host, backend = by
        if backend is None:
            continue
        found = document.refused or vote(document.value)
        if isinstance(found, str):
            rejections.append(refused(key, found, document.mod_revision))
        elif found is not None:
            cast[host][backend] = found
    return dict(cast), tuple(rejections)


class Confirmation(Struct, frozen=True, forbid_unknown_fields=True):
    """A host's word that all its verdicts are up to date.

    Attributes:
        number: grows with each; of the host's monotonic clock, ns, when it began to be written.
        every: seconds after which the next one is due.
    """

    number: Annotated[int, Meta(ge=0)]
    every: Annotated[float, Meta(gt=0, le=3600)]


def confirmation_key() -> str:
    """Return the key of a confirmation, relative to the prefix of its host's verdicts."""
    return _CONFIRMED


def encode_confirmation(said: Confirmation) -> bytes:
    """Return a confirmation as JSON."""
    return msgspec.json.encode(said)


def confirmation(value: bytes) -> Confirmation | str:
    """Return a host's confirmation, or why it cannot be read."""
    try:
        return msgspec.json.decode(value, type=Confirmation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return shortened(f"not a confirmation: {error}", 500)


@lru_cache(_REMEMBERED)
def signed(key: str) -> tuple[str, BackendKey | None] | str:
    """Return whose key it is and on what backend, None being its confirmation; or why it is none.

    Args:
        key: relative to the prefix of the fleet's verdicts.
    """
    host, _, rest = key.partition("/")
    if rest == _CONFIRMED and is_name(host):
        return host, None
    parts = key.split("/")
    if len(parts) != _PARTS or not all(map(is_name, parts[:2])):
        return _SHAPE
    _, pool, backend = parts
    if not (is_name(backend) or backend.startswith("@")):  # one that lost its name and leaves
        return _SHAPE
    return host, BackendKey(pool, backend)


@lru_cache(_REMEMBERED)
def vote(value: bytes) -> Vote | str | None:
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


def refused(key: str, reason: str, revision: int) -> Rejection:
    """Return the refusal of a key, which is relative to the prefix of the fleet's verdicts."""
    return Rejection(f"health/{shortened(key)}", "", reason, "schema", revision)
