# SPDX-License-Identifier: Apache-2.0
"""The documents that control systems write, one frozen struct each.

`schemas/` is exported from these structs, so a field's description, unit, default and example are
written here and nowhere else. Unknown fields are refused.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[int, Meta(ge=0, le=3600)]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$",
        description="A name: 1 to 63 letters, digits, dots, underscores and hyphens.",
    ),
]
BackendState = Literal["active", "drain", "quarantine", "disabled"]
Protocol = Literal["tcp", "udp"]


class VipDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A virtual IP address, port and protocol, and the pool that serves it."""

    address: Annotated[
        str,
        Meta(description="IPv4 or IPv6 address that clients connect to.", examples=["192.0.2.10"]),
    ]
    port: Annotated[Port, Meta(description="Destination port.", examples=[443])]
    protocol: Annotated[Protocol, Meta(description="Transport protocol.", examples=["tcp"])]
    pool: Annotated[Name, Meta(description="Name of the pool that serves it.", examples=["web"])]


class PoolDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A set of backends that share one Maglev table."""

    deregistration_delay: Annotated[
        Seconds,
        Meta(
            description="Seconds for which a backend whose key was deleted still serves its flows.",
            examples=[300],
        ),
    ] = 300
    transition_window: Annotated[
        Seconds,
        Meta(
            description=(
                "Seconds after a slot's last change for which flows that are not tracked stay with "
                "the owner that the slot had before."
            ),
            examples=[300],
        ),
    ] = 300


class BackendDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One server of a pool."""

    address: Annotated[
        str,
        Meta(
            description="IPv4 or IPv6 address that encapsulated packets are sent to.",
            examples=["198.51.100.7"],
        ),
    ]
    weight: Annotated[
        int,
        Meta(
            ge=0,
            le=65535,
            description="Share of new flows relative to the pool's other backends; 0 takes none.",
            examples=[100],
        ),
    ] = 100
    state: Annotated[
        BackendState,
        Meta(
            description=(
                "active: serves. drain: no new flows, keeps its flows. quarantine: failed, its "
                "flows move at once. disabled: as if it were not there, at once."
            ),
            examples=["active"],
        ),
    ] = "active"
