# SPDX-License-Identifier: Apache-2.0
"""The types of documents' fields: names, times, rates, and the words that a field may have."""

from typing import Annotated, Final, Literal, get_args

from msgspec import Meta

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=0, le=3600, extra_json_schema={"unit": "s"})]
LongSeconds = Annotated[int, Meta(ge=0, le=86_400, extra_json_schema={"unit": "s"})]
Rate = Annotated[int, Meta(ge=1, le=100_000_000, extra_json_schema={"unit": "1/s"})]
Name = Annotated[
    str,
    Meta(
        title="name",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
        description="A name: 1 to 63 letters, digits, dots, underscores and hyphens.",
    ),
]
TIME_PATTERN: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?Z$"
Time = Annotated[
    str,
    Meta(
        title="time",
        pattern=TIME_PATTERN,
        description="Time in UTC as RFC 3339 writes it.",
        extra_json_schema={"format": "date-time"},
    ),
]
Percent = Annotated[int, Meta(ge=0, le=100, extra_json_schema={"unit": "%"})]
SERVER_ID_PATTERN: Final = r"^([0-9a-fA-F]{2}){1,15}$"
BackendState = Literal["active", "drain", "quarantine", "disabled"]
Protocol = Literal["tcp", "udp"]
Tracking = Literal["full", "transition", "none"]
Unserved = Literal["drop", "reject", "pass"]
UNSERVED: Final[tuple[Unserved, ...]] = get_args(Unserved)
"""The strictest first."""
HashFields = Literal["5-tuple", "source", "source+port"]
Encapsulation = Literal["ipip", "gue"]
