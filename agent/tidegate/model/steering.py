# SPDX-License-Identifier: Apache-2.0
"""The documents beside the releases: which release a host follows, and whether it may apply it.

As in `documents`, one frozen struct each, from which `schemas/` is exported; unknown fields are
refused. Their keys are relative to the fleet.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tidegate.model.document_types import Name, Time
from tidegate.model.traceparent import Traceparent

Guard = Literal["vips", "removal", "disruption"]
Reason = Annotated[str, Meta(max_length=500)]
Health = Literal["healthy", "unhealthy", "initial", "draining", "unused"]
HealthCode = Literal[
    "passed",
    "checking",
    "late",
    "timeout",
    "refused",
    "reset",
    "unreachable",
    "mismatch",
    "certificate",
    "error",
    "host",
    "held-down",
    "draining",
    "not-used",
    "no-check",
    "external",
]


class TrackDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which release the hosts on a track follow."""

    release: Annotated[
        Name,
        Meta(
            description="Release that is in force on hosts of this track.",
            examples=["live", "2026-01-31.2"],
        ),
    ]
    traceparent: Traceparent = None


class HostDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Steering of one host: its track, whether it is frozen, and what its addresses are for."""

    track: Annotated[
        Name | None,
        Meta(
            description="Track that the host is on; null leaves it to the agent's file.",
            examples=["canary"],
        ),
    ] = None
    freeze: Annotated[
        bool,
        Meta(
            description="Whether the host keeps its generation, whatever the release says.",
            examples=[False],
        ),
    ] = False
    reason: Annotated[
        Reason,
        Meta(
            description="Why it is frozen, for people; the host's status shows it.",
            examples=["replacing its switch"],
        ),
    ] = ""
    allowed_addresses: Annotated[
        tuple[str, ...],
        Meta(
            max_length=64,
            description=(
                "Addresses of the host itself that VIPs may have all the same; its own "
                "connections from there are taken by the VIP."
            ),
            examples=[["192.0.2.1"]],
        ),
    ] = ()
    traceparent: Traceparent = None


class FleetDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Steering of all hosts of a fleet: whether they are frozen."""

    freeze: Annotated[
        bool,
        Meta(
            description="Whether all hosts keep their generation, whatever their release says.",
            examples=[False],
        ),
    ] = False
    reason: Annotated[
        Reason,
        Meta(
            description="Why it is frozen, for people; the hosts' statuses show it.",
            examples=["incident 4711"],
        ),
    ] = ""
    traceparent: Traceparent = None


class OverrideDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An override that allows a change which a guard would refuse."""

    guard: Annotated[
        Guard,
        Meta(
            description=(
                "Guard that is lifted. vips: many or all VIPs vanish at once. removal: many or all "
                "serving backends of a pool go at once. disruption: a table moves more slots than "
                "its bound."
            ),
            examples=["removal"],
        ),
    ]
    pool: Annotated[
        Name | None,
        Meta(description="Pool that it is lifted for; null is all pools.", examples=["web"]),
    ] = None
    expires_at: Annotated[
        Time,
        Meta(
            description="Time (UTC) from which the guard holds again.",
            examples=["2026-01-31T12:10:00Z"],
        ),
    ]
    reason: Annotated[
        Reason, Meta(description="Why, for people.", examples=["moving web to another site"])
    ] = ""
    traceparent: Traceparent = None


class VerdictDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The verdict of one host on a backend.

    A host writes it under its lease when its finding changes, not at each check. A control system
    may write one too, under a name of its own in place of the host.
    """

    state: Annotated[
        Health,
        Meta(
            description=(
                "initial: not checked often enough yet. healthy, unhealthy: by its checks. "
                "draining: takes no new flows. unused: nothing checks it."
            ),
            examples=["unhealthy"],
        ),
    ]
    code: Annotated[
        HealthCode,
        Meta(
            description=(
                "Why, for programs. passed: checks succeed. checking: the first checks are under "
                "way. late: none has ended for too long. timeout: no answer in time. refused, "
                "reset: the connection was. unreachable: no way there. "
                "mismatch: another answer than expected. certificate: not accepted. "
                "error: another failure. host: this host could not ask. "
                "held-down: checks succeed, after too many changes. "
                "draining: by its document. not-used: no VIP uses its pool. no-check: its pool has "
                "no check. external: a control system says so."
            ),
            examples=["timeout"],
        ),
    ]
    reason: Annotated[
        Reason,
        Meta(
            description="Why, for people, with the last error.",
            examples=["3 checks failed; the last had no answer within 2 s."],
        ),
    ] = ""
    since: Annotated[
        Time,
        Meta(
            description="Time (UTC) since which it has been in this state.",
            examples=["2026-01-31T12:00:03Z"],
        ),
    ]
    recovered: Annotated[
        bool,
        Meta(
            description=(
                "Whether it is healthy after it was unhealthy: then it joins through its pool's "
                "slow start, counted from `since`."
            ),
            examples=[False],
        ),
    ] = False
