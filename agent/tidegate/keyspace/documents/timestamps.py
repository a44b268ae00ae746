# SPDX-License-Identifier: Apache-2.0
"""Times in documents: RFC 3339 in UTC, as whole seconds since 1970.

Whole seconds, rounded down, so that every host that reads a document means the same moment.
"""

from datetime import datetime
from typing import Final

_WITHOUT_FRACTION: Final = len("2026-01-31T12:00:00")


def parse_timestamp(text: str) -> int | str:
    """Return the second since 1970 of a time that has the shape of `Time`, or what is wrong.

    The shape allows days that no calendar has. The text on what is wrong begins with a verb, to
    follow the name of the field.
    """
    try:
        moment = datetime.fromisoformat(text[:_WITHOUT_FRACTION] + "+00:00")
    except ValueError as error:
        return f"is {text}, which is not a time: {error}"
    return int(moment.timestamp())
