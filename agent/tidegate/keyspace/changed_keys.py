# SPDX-License-Identifier: Apache-2.0
"""Finds out what has arrived between two looks at a prefix, and in whose traces.

A document that is refused may still say whose change it was: the refusal belongs in that trace. So
this reads one field and cares for no other.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from tidegate.model import traceparent
from tidegate.model.received_writes import KeyWrite, ReceivedWrites, collect
from tidegate.model.values import Document


class _Traced(msgspec.Struct):
    traceparent: str = ""


_decoder: Final = msgspec.json.Decoder(_Traced)


def traceparent_of(value: bytes) -> str:
    """The trace context that a document carries; empty if it has none that can be used."""
    if b"traceparent" not in value:  # nearly all: this is asked for each event
        return ""
    try:
        text = _decoder.decode(value).traceparent
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return text if traceparent.is_valid(text) else ""


def between(
    before: Mapping[str, Document], after: Mapping[str, Document], revision: int, received: int
) -> ReceivedWrites:
    """What two lists differ in; a deletion counts as of the revision of the second."""
    found = [
        KeyWrite(key, document.mod_revision, traceparent_of(document.value))
        for key, document in after.items()
        if (old := before.get(key)) is None or old.mod_revision != document.mod_revision
    ]
    found += [KeyWrite(key, revision) for key in before.keys() - after.keys()]
    return collect(sorted(found, key=lambda each: (each.revision, each.key)), received)
