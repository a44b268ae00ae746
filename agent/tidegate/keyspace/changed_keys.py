# SPDX-License-Identifier: Apache-2.0
"""Find the keys that changed between two lists of a prefix, and the traces they belong to.

A document that is refused may still carry a trace context, and its refusal belongs in that trace.
So this reads that one field, and ignores whether the rest is valid.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.model import traceparent
from tidegate.model.byte_order_mark import without_mark
from tidegate.model.received_writes import KeyWrite, ReceivedWrites, collect
from tidegate.model.values import Document


class _Traced(msgspec.Struct):
    traceparent: str = ""


_decoder: Final = msgspec.json.Decoder(_Traced)


def traceparent_of(value: bytes) -> str:
    """Return the trace context of a document, or an empty text if it has no valid one."""
    if b"traceparent" not in value:  # nearly all: this is asked for each event
        return ""
    try:
        text = _decoder.decode(without_mark(value)).traceparent
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return text if traceparent.is_valid(text) else ""


def between(
    before: Mapping[str, Document], after: Mapping[str, Document], revision: int, received: int
) -> ReceivedWrites:
    """Return the writes by which two lists differ; a deletion has the revision of the second."""
    found = [
        KeyWrite(key, document.mod_revision, traceparent_of(document.value))
        for key, document in after.items()
        if (old := before.get(key)) is None or old.mod_revision != document.mod_revision
    ]
    found += [KeyWrite(key, revision) for key in before.keys() - after.keys()]
    return collect(sorted(found, key=lambda each: (each.revision, each.key)), received)
