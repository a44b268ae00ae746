# SPDX-License-Identifier: Apache-2.0
"""The parts of the status document that have fields of their own.

`document` puts them together.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tidegate.model.document_types import Name, Time
from tidegate.model.steering import Guard

Count = Annotated[int, Meta(ge=0, extra_json_schema={"unit": "1"})]
Number = Annotated[int, Meta(ge=0)]


class Refusal(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that was refused, and why."""

    key: Annotated[
        str,
        Meta(
            description="Key, relative to the release, or to the fleet.",
            examples=["vips/shop-https"],
        ),
    ]
    field: Annotated[
        str, Meta(description="Field of the document; empty for all of it.", examples=["port"])
    ]
    reason: Annotated[
        str,
        Meta(
            description="What was found and what is allowed.",
            examples=["port is 70000; it must be a whole number from 1 to 65535"],
        ),
    ]
    stage: Annotated[
        Literal["decode", "schema", "reference", "guard", "build", "publish", "verify"],
        Meta(description="Step at which it was refused.", examples=["schema"]),
    ]
    revision: Annotated[
        Number, Meta(description="etcd revision of the refused write.", examples=[1042])
    ]


class InterfaceStatus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An interface that the data plane is attached to."""

    name: Annotated[str, Meta(description="Interface name.", examples=["eth0"])]
    mode: Annotated[
        Literal["native", "generic", "detached"],
        Meta(description="XDP mode; detached: the program is not on it.", examples=["native"]),
    ]


class OverrideStatus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An override that lifts a guard at this moment."""

    name: Annotated[Name, Meta(description="Name of its key.", examples=["move-web"])]
    guard: Annotated[Guard, Meta(description="Guard that is lifted.", examples=["removal"])]
    pool: Annotated[
        Name | None, Meta(description="Pool that it is lifted for; null is all.", examples=["web"])
    ] = None
    expires_at: Annotated[
        Time, Meta(description="When the guard holds again.", examples=["2026-01-31T12:10:00Z"])
    ]


class TrafficStatus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What became of packets for VIPs, in the seconds before it last changed by more than noise."""

    packets_per_second: Annotated[
        float,
        Meta(
            ge=0,
            description="Packets for VIPs, all of them.",
            extra_json_schema={"unit": "1/s"},
            examples=[182000.0],
        ),
    ] = 0.0
    drops: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of them that was dropped.",
            extra_json_schema={"unit": "1"},
            examples=[0.0004],
        ),
    ] = 0.0
    misses: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description=(
                "Share of them that were TCP packets without a SYN and in no table of flows."
            ),
            extra_json_schema={"unit": "1"},
            examples=[0.021],
        ),
    ] = 0.0


class BackendsStatus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Backends of the generation in force, without those whose keys were deleted."""

    total: Annotated[Count, Meta(description="All of them.", examples=[40])] = 0
    serving: Annotated[Count, Meta(description="Those that take new flows.", examples=[38])] = 0
    unhealthy: Annotated[
        Count,
        Meta(
            description="Those that are quarantined, or that health checks have taken out.",
            examples=[1],
        ),
    ] = 0


class HealthStatus(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why health checks leave failed backends in, where they do; whose verdicts are in doubt."""

    blind: Annotated[
        bool,
        Meta(
            description=(
                "Whether the host finds many backends dead that the others reach; its verdicts "
                "do not count."
            ),
            examples=[False],
        ),
    ] = False
    broken_checker: Annotated[
        bool,
        Meta(description="Whether everything failed at once, so nothing is out.", examples=[False]),
    ] = False
    panics: Annotated[
        tuple[str, ...],
        Meta(
            description="Pools that keep unhealthy backends, since too few are healthy.",
            examples=[[], ["web"]],
        ),
    ] = ()
    waiting: Annotated[
        Count,
        Meta(
            description="Unhealthy backends that the limit per minute still keeps in.",
            examples=[0],
        ),
    ] = 0
    late: Annotated[
        Count,
        Meta(
            description=(
                "Backends on which this host has no finding any more, as none of their checks has "
                "ended for three intervals and a timeout."
            ),
            examples=[0],
        ),
    ] = 0
    unconfirmed: Annotated[
        tuple[Name, ...],
        Meta(
            description=(
                "Hosts whose verdicts are there, and that have not said for three times as long as "
                "they should that those are up to date."
            ),
            examples=[[], ["lb3"]],
        ),
    ] = ()
    unreadable: Annotated[
        Count,
        Meta(
            description="Verdicts of all hosts that cannot be read; `refusals` names them.",
            examples=[0],
        ),
    ] = 0
    overwritten: Annotated[
        Count,
        Meta(
            description=(
                "Verdicts of this host that somebody else wrote or deleted since its agent "
                "started; each was written anew."
            ),
            examples=[0],
        ),
    ] = 0
    hindrance: Annotated[
        str,
        Meta(
            description=(
                "Which backends the host cannot probe, by its own fault, and what to do; empty if "
                "none. They keep their states."
            ),
            examples=[""],
        ),
    ] = ""


class Usage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How full one table of the data plane is."""

    used: Annotated[Count, Meta(description="Entries in use.", examples=[12])]
    resting: Annotated[
        Count,
        Meta(
            description=(
                "Ids that were used within the last hour and are used again last, as of the last "
                "full minute. They keep nothing out: where all others are used, the one that has "
                "rested longest is taken."
            ),
            examples=[0],
        ),
    ] = 0
    limit: Annotated[Count, Meta(description="Entries that fit.", examples=[4095])]
