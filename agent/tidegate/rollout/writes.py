# SPDX-License-Identifier: Apache-2.0
"""Make the documents that a rollout writes to operators' keys: hosts, and tracks' releases.

Documents are changed as objects, not as this version's structs, so that fields of later versions
stay. Their trace context becomes that of the rollout. What was there before is restored byte for
byte.
"""

from typing import Any, Final

import msgspec

from tidegate.keyspace.etcd.transaction import Write
from tidegate.keyspace.paths import host_key
from tidegate.model.byte_order_mark import without_mark
from tidegate.model.rollout import MovedHost, RolloutDocument
from tidegate.rollout.fleet import SeenHost

_TRACEPARENT: Final = "traceparent"


def with_track(
    original: bytes | None, track: str | None, traceparent: str | None = None
) -> bytes | None:
    """Return a host's document with another track and all else as it was; None for no document."""
    fields: dict[str, Any] = (
        msgspec.json.decode(without_mark(original)) if original is not None else {}
    )
    fields.pop("track", None)
    fields.pop(_TRACEPARENT, None)
    if track is not None:
        fields = {"track": track, **fields, **_trace(traceparent)}
    return msgspec.json.encode(fields) if fields or original is not None else None


def pointing(original: bytes | None, document: RolloutDocument) -> bytes:
    """Return a track's document with the rollout's release and all else as it was."""
    fields: dict[str, Any] = (
        msgspec.json.decode(without_mark(original)) if original is not None else {}
    )
    fields.pop(_TRACEPARENT, None)
    trace = _trace(document.traceparent)
    return msgspec.json.encode({**fields, "release": document.release, **trace})


def _trace(traceparent: str | None) -> dict[str, str]:
    return {_TRACEPARENT: traceparent} if traceparent else {}


def original_of(moved: MovedHost) -> bytes | None:
    """Return a host's document as it was before the rollout; None if there was none."""
    return moved.original.encode() if moved.original is not None else None


def moved_value(document: RolloutDocument, moved: MovedHost) -> bytes | None:
    """Return what the rollout writes for a host."""
    return with_track(original_of(moved), document.track, document.traceparent)


def is_ours(document: RolloutDocument, moved: MovedHost, host: SeenHost | None) -> bool:
    """Say whether a host's document is what the rollout wrote."""
    return bool(host and host.key and host.key.value == moved_value(document, moved))


def is_edited(document: RolloutDocument, host: SeenHost | None) -> bool:
    """Say whether a document has the host on the rollout's track, whoever wrote it."""
    return bool(host and host.document and host.document.track == document.track)


def moving_write(document: RolloutDocument, moved: MovedHost, expected: int) -> Write:
    """Put a host on the rollout's track."""
    return Write(host_key(moved.host), moved_value(document, moved), expected)


def edit_put_back(moved: MovedHost, current: bytes) -> bytes | None:
    """Return an edited document with its edits, and the track that the host had before."""
    original = original_of(moved)
    before = msgspec.json.decode(without_mark(original)) if original is not None else {}
    value = with_track(current, before.get("track"))
    return None if value == b"{}" and original is None else value
