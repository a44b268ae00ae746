# SPDX-License-Identifier: Apache-2.0
"""Make a release equal to documents: the writes, and the hosts' answers to them. Pure.

One transaction makes all changes if they fit: then no agent ever sees a part of them. Otherwise
they are made in an order in which each part is consistent by itself: a document that others refer
to is written before them, and deleted after them. Agents put each part into force as they see it.
To make a large change at once, write it as a new release, and flip a track to that.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from tidegate.keyspace.etcd.transaction import MAX_WRITES, Write
from tidegate.keyspace.paths import SETTINGS_KEY, releases_key
from tidegate.model.byte_order_mark import without_mark
from tidegate.model.values import Document
from tidegate.rollout.fleet import HostStatus, Seen

MAX_BYTES: Final = 1024 * 1024
"""Bytes of documents in one transaction; etcd takes requests of 1.5 MiB."""

_SHOWN: Final = 20
_TRACEPARENT: Final = "traceparent"


class Changes(NamedTuple):
    """Keys relative to the release, in the order in which they are to be written."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    deleted: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.deleted)

    def __bool__(self) -> bool:
        return len(self) > 0


def difference(current: Mapping[str, Document], wanted: Mapping[str, bytes]) -> Changes:
    """Say what is to be added, changed and deleted.

    The layout of a document does not count, nor the trace that it was written in.
    """
    return Changes(
        tuple(sorted((key for key in wanted if key not in current), key=_rank)),
        tuple(
            sorted(
                (
                    key
                    for key, value in wanted.items()
                    if key in current and not _is_same(current[key].value, value)
                ),
                key=_rank,
            )
        ),
        tuple(sorted((key for key in current if key not in wanted), key=_rank, reverse=True)),
    )


def _rank(key: str) -> tuple[int, str]:
    """Rank settings, pools, backends, VIPs, and other keys last."""
    if key == SETTINGS_KEY:
        return 0, key
    if key.startswith("pools/"):
        return (2 if "/backends/" in key else 1), key
    return (3 if key.startswith("vips/") else 4), key


def _is_same(current: bytes, wanted: bytes) -> bool:
    return current == wanted or _content(current) == _content(wanted)


def _content(value: bytes) -> Any:  # noqa: ANN401 - any JSON
    try:
        found = msgspec.json.decode(without_mark(value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return value
    if isinstance(found, dict):
        found.pop(_TRACEPARENT, None)
    return found


def traced(wanted: Mapping[str, bytes], traceparent: str) -> dict[str, bytes]:
    """Return valid documents with this trace context in place of their own."""
    return {
        key: msgspec.json.encode(
            {**msgspec.json.decode(without_mark(value)), _TRACEPARENT: traceparent}
        )
        for key, value in wanted.items()
    }


def transactions(
    release: str,
    changes: Changes,
    current: Mapping[str, Document],
    wanted: Mapping[str, bytes],
) -> list[list[Write]]:
    """Return the writes that make the changes, in as few transactions as etcd takes.

    Each is conditional on its key being as it was read.
    """
    puts = sorted((*changes.added, *changes.changed), key=_rank)
    prefix = releases_key(release)
    writes = [
        Write(prefix + key, wanted.get(key), current[key].mod_revision if key in current else 0)
        for key in (*puts, *changes.deleted)
    ]
    parts: list[list[Write]] = []
    size = 0
    for write in writes:
        length = len(write.key) + len(write.value or b"")
        if not parts or len(parts[-1]) == MAX_WRITES or size + length > MAX_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(write)
        size += length
    return parts


class Answer(NamedTuple):
    """The answer of a host to a revision of the release that it follows."""

    host: str
    kind: Literal["ack", "nack", "frozen", "waiting"]
    reasons: tuple[str, ...] = ()


def answers(seen: Seen, release: str, revision: int) -> list[Answer]:
    """Return the answers of all hosts that are there and follow the release, by name."""
    return [
        _answer(name, host.status, revision)
        for name, host in seen.hosts.items()
        if host.status is not None and host.status.release == release
    ]


def _answer(name: str, status: HostStatus, revision: int) -> Answer:
    if status.state == "frozen":
        return Answer(name, "frozen", (status.reason,))
    if status.release_revision < revision:
        return Answer(name, "waiting", (f"{status.state}: {status.reason}".rstrip(": "),))
    if status.refusals:
        return Answer(name, "nack", tuple(map(str, status.refusals)))
    if status.state == "degraded":
        return Answer(name, "nack", (status.reason,))
    return Answer(name, "ack" if status.state == "synced" else "waiting", (status.state,))


def listing(sign: str, keys: Sequence[str], *, whole: bool) -> Iterable[str]:
    """Yield lines for a list of keys, of a long one the first unless `whole`."""
    shown = keys if whole else keys[:_SHOWN]
    yield from (f"  {sign} {key}" for key in shown)
    if len(shown) < len(keys):
        yield f"  {sign} … and {len(keys) - len(shown)} more"
