# SPDX-License-Identifier: Apache-2.0
"""The trace context that a document may carry: the trace of the change that it is part of.

It does not affect what is wanted, so no value that generations are made of has it.
"""

import re
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

PATTERN: Final = r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"

Traceparent: TypeAlias = Annotated[
    Annotated[str, Meta(title="traceparent", pattern=PATTERN)] | None,
    Meta(
        description=(
            "Trace context of the writer, as the W3C header `traceparent` (version 00): what the "
            "hosts do with this write becomes part of that trace. It changes nothing else. null "
            "leaves each host to begin a trace of its own."
        ),
        examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
    ),
]


def fault(text: str) -> str:
    """Say why the W3C refuses a text that matches the pattern; return an empty text if it does not.

    A pattern that every dialect of regular expressions knows cannot say "not all zeros".
    """
    _, trace, parent, _ = text.split("-")
    if not trace.strip("0"):
        return "has a trace id of zeros; at least one digit must differ"
    if not parent.strip("0"):
        return "has a parent id of zeros; at least one digit must differ"
    return ""


def is_valid(text: str) -> bool:
    """Say whether a text is a traceparent in form and content."""
    return re.fullmatch(PATTERN, text) is not None and not fault(text)
