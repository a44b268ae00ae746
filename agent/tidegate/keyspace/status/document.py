# SPDX-License-Identifier: Apache-2.0
"""The status document: what a host reports to the fleet, field by field.

It answers a release with ACK or NACK: what was seen, what is in force, and every refusal. A value;
`writer` writes it, and anybody may read it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from tidegate.keyspace.status.parts import (
    BackendsStatus,
    Count,
    HealthStatus,
    InterfaceStatus,
    Number,
    OverrideStatus,
    Refusal,
    TrafficStatus,
    Usage,
)
from tidegate.model.document_types import Name, Time
from tidegate.model.values import Rejection

State = Literal["starting", "synced", "degraded", "frozen", "stale"]


class StatusDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a load-balancer host reports to the fleet; it disappears with its host."""

    version: Annotated[str, Meta(description="Version of the agent.", examples=["0.1.0"])]
    host: Annotated[Name, Meta(description="Name of the host.", examples=["lb1"])]
    instance: Annotated[
        str,
        Meta(
            description=(
                "Boot id of the host and number of its data plane: it stays when the agent "
                "restarts, and no other host has it, so two hosts of one name are told apart."
            ),
            examples=["0f2c9a52-6d0e-4c7b-9a55-0a3f7f1f5b0e/412"],
        ),
    ] = ""
    track: Annotated[
        Name, Meta(description="Track that the host follows.", examples=["stable"])
    ] = "stable"
    release: Annotated[Name, Meta(description="Release that the host follows.", examples=["live"])]
    release_revision: Annotated[
        Number,
        Meta(
            description="etcd revision at which the release was last found changed.",
            examples=[1042],
        ),
    ] = 0
    revision: Annotated[
        Number, Meta(description="Latest etcd revision that the agent has seen.", examples=[1042])
    ]
    generation: Annotated[
        Number,
        Meta(description="Number of the generation in force; 0 is none.", examples=[17]),
    ]
    generation_release: Annotated[
        str,
        Meta(
            description="Release that the generation was built from; empty if it is not known.",
            examples=["live"],
        ),
    ] = ""
    generation_revision: Annotated[
        Number,
        Meta(description="etcd revision that the generation was built from.", examples=[1042]),
    ] = 0
    digest: Annotated[
        str,
        Meta(
            description=(
                "Digest of VIPs, backends and tables in force; equal on hosts that do the same."
            ),
            examples=["9f2c11d04be7a6c0"],
        ),
    ] = ""
    state: Annotated[
        State,
        Meta(
            description=(
                "starting: nothing applied yet. synced: the latest revision is in force. degraded: "
                "something was refused or failed. frozen: an order keeps the generation. stale: no "
                "contact with etcd, forwarding on the last generation."
            ),
            examples=["synced"],
        ),
    ]
    reason: Annotated[
        str,
        Meta(
            description="Why the host is in this state; empty when synced.",
            examples=["", "1 refused: vips/shop: pool web is not in force"],
        ),
    ] = ""
    ready: Annotated[
        bool,
        Meta(
            description=(
                "Whether the host forwards as it should, so that routers may send it packets; a "
                "stale host does, unless its file says otherwise."
            ),
            examples=[True],
        ),
    ] = False
    ready_reason: Annotated[
        str,
        Meta(
            description="Why it is not ready; empty if it is.",
            examples=["", "eth0 has no carrier, and IPv4 backends need it"],
        ),
    ] = ""
    freeze: Annotated[
        str,
        Meta(
            description="Who has frozen the host, and why; empty if nobody has.",
            examples=["", "fleet freezes all: incident 4711"],
        ),
    ] = ""
    overrides: Annotated[
        tuple[OverrideStatus, ...],
        Meta(
            description="Overrides of guards that have not expired.",
            examples=[
                [],
                [
                    {
                        "name": "move-web",
                        "guard": "removal",
                        "pool": "web",
                        "expires_at": "2026-01-31T12:10:00Z",
                    }
                ],
            ],
        ),
    ] = ()
    warnings: Annotated[
        tuple[str, ...],
        Meta(
            description=(
                "What somebody should repair, though packets and changes go on, such as a journal "
                "that cannot be written."
            ),
            examples=[[]],
        ),
    ] = ()
    refusals: Annotated[
        tuple[Refusal, ...],
        Meta(
            description="Everything that is refused now.",
            examples=[
                [],
                [
                    {
                        "key": "pools/web",
                        "field": "mtu",
                        "reason": "mtu is 900; it must be a whole number from 1328 to 65535",
                        "stage": "schema",
                        "revision": 1042,
                    }
                ],
            ],
        ),
    ] = ()
    refusals_left_out: Annotated[
        Count,
        Meta(description="Refusals beyond those listed, left out to bound it.", examples=[0]),
    ] = 0
    interfaces: Annotated[
        tuple[InterfaceStatus, ...],
        Meta(
            description="Interfaces of the data plane.",
            examples=[[{"name": "eth0", "mode": "native"}]],
        ),
    ] = ()
    capacity: Annotated[
        dict[str, Usage],
        Meta(
            description="Use of the data plane's tables, by table.",
            examples=[{"vips": {"used": 12, "resting": 1, "limit": 4095}}],
        ),
    ] = {}
    backends: Annotated[
        BackendsStatus,
        Meta(
            description="Backends of all pools together.",
            examples=[{"total": 40, "serving": 38, "unhealthy": 1}],
        ),
    ] = BackendsStatus()
    on_sorry_pool: Annotated[
        tuple[Name, ...],
        Meta(
            description=(
                "VIPs whose sorry pool serves in place of a pool of theirs without a backend that "
                "takes new flows."
            ),
            examples=[[], ["shop-https"]],
        ),
    ] = ()
    health: Annotated[
        HealthStatus,
        Meta(description="What checks do not act upon.", examples=[{"blind": False}]),
    ] = HealthStatus()
    traffic: Annotated[
        TrafficStatus | None,
        Meta(
            description="What became of packets; null until the agent has run for some seconds.",
            examples=[{"packets_per_second": 182000.0, "drops": 0.0004, "misses": 0.021}],
        ),
    ] = None
    repairs: Annotated[
        Count,
        Meta(
            description=(
                "Differences between the kernel and the generation in force that the audit found "
                "and put right since the agent started; 0 unless something is wrong."
            ),
            examples=[0],
        ),
    ] = 0
    started_at: Annotated[
        Time, Meta(description="When the agent started.", examples=["2026-01-31T12:00:00Z"])
    ]
    applied_at: Annotated[
        Time | None,
        Meta(
            description="When the generation in force was applied; null if none is.",
            examples=["2026-01-31T12:00:01Z"],
        ),
    ] = None
    changed_at: Annotated[
        Time | None,
        Meta(
            description="When this document's content last changed.",
            examples=["2026-01-31T12:00:01Z"],
        ),
    ] = None


MAX_REFUSALS = 200
"""Refusals that a status lists; etcd takes 1.5 MiB, and people read less."""


def rfc3339(seconds: float) -> str:
    """Return a wall-clock time (seconds since 1970) as the documents write it, to milliseconds."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refusals(rejections: Sequence[Rejection]) -> tuple[tuple[Refusal, ...], int]:
    """Return the first MAX_REFUSALS as the status lists them, and how many are left out."""
    listed = tuple(
        Refusal(
            key=rejection.key,
            field=rejection.field,
            reason=rejection.reason,
            stage=rejection.stage,
            revision=rejection.revision,
        )
        for rejection in rejections[:MAX_REFUSALS]
    )
    return listed, len(rejections) - len(listed)


def encode(document: StatusDocument) -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(document)


def decode(value: bytes) -> StatusDocument:
    """Read a status document that a host wrote.

    Raises:
        msgspec.DecodeError: it is not JSON, or (its subclass ValidationError) not a status.
    """
    return msgspec.json.decode(value, type=StatusDocument)
