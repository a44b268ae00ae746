# SPDX-License-Identifier: Apache-2.0
"""The document of a rollout: everything that its driver knows, so that another one can continue.

It is written by `tidegate rollout` alone, in the same transactions as the keys that it describes:
what it says was moved was moved, and nothing else was.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from tidegate.model.document_types import Name, Time
from tidegate.model.steering import Reason
from tidegate.model.traceparent import Traceparent

RolloutState = Literal[
    "moving",
    "waiting",
    "baking",
    "flipping",
    "restoring",
    "putting-back",
    "done",
    "failed",
    "aborted",
]
ENDED: Final[frozenset[RolloutState]] = frozenset({"done", "failed", "aborted"})
PERMANENT: Final[frozenset[RolloutState]] = frozenset({"restoring", "done"})
"""States in which the tracks' own pointers are at the new release."""

Wait = Annotated[int, Meta(ge=0, le=604_800, extra_json_schema={"unit": "s"})]
Points = Annotated[float, Meta(ge=0, le=100, extra_json_schema={"unit": "%"})]
Count = Annotated[int, Meta(ge=0)]
WaveText = Annotated[str, Meta(min_length=1, max_length=63)]


class CriteriaDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes a rollout fail; a host that does not acknowledge in time always does.

    The last three are percentage points by which a host that was moved may be worse than those that
    were not; null is not compared.
    """

    nack: Annotated[
        bool, Meta(description="A host that was moved refuses something.", examples=[True])
    ] = False
    degraded: Annotated[
        bool, Meta(description="A host that was moved gets degraded or stale.", examples=[True])
    ] = False
    vanished: Annotated[
        bool, Meta(description="The status of a host that was moved disappears.", examples=[True])
    ] = False
    digest: Annotated[
        bool, Meta(description="Hosts that were moved disagree in their digests.", examples=[True])
    ] = False
    drops: Annotated[
        Points | None, Meta(description="Dropped packets of all packets.", examples=[0.1])
    ] = None
    misses: Annotated[
        Points | None,
        Meta(description="Untracked TCP packets that are no SYNs, of all packets.", examples=[1.0]),
    ] = None
    unhealthy: Annotated[
        Points | None, Meta(description="Unhealthy backends of all backends.", examples=[5.0])
    ] = None


class BaselineDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Figures of the hosts that were not moved, before the latest wave, in percent."""

    drops: Annotated[Points, Meta(description="Dropped packets of all.", examples=[0.01])] = 0.0
    misses: Annotated[
        Points, Meta(description="Untracked TCP packets that are no SYNs.", examples=[2.5])
    ] = 0.0
    unhealthy: Annotated[Points, Meta(description="Unhealthy backends of all.", examples=[0.0])] = (
        0.0
    )


class MovedHost(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A host that the rollout has put on its track."""

    host: Annotated[Name, Meta(description="Its name.", examples=["lb1"])]
    wave: Annotated[Count, Meta(description="Wave that moved it; the first is 0.", examples=[0])]
    track: Annotated[Name, Meta(description="Track that it came from.", examples=["stable"])]
    original: Annotated[
        str | None,
        Meta(
            description="Its `hosts` document before; null if there was none.",
            examples=['{"track": "stable"}'],
        ),
    ] = None
    restored: Annotated[
        bool, Meta(description="Whether that has been put back.", examples=[False])
    ] = False


class RolloutDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The rollout under way, or the last one."""

    release: Annotated[
        Name, Meta(description="Release that hosts are moved to.", examples=["2026-01-31.2"])
    ]
    track: Annotated[
        Name,
        Meta(
            description="Track of the rollout's own, that moved hosts are on until it ends.",
            examples=["rollout-2026-01-31.2"],
        ),
    ]
    state: Annotated[
        RolloutState,
        Meta(
            description=(
                "moving: puts a wave's hosts on its track. waiting: for their statuses. baking: "
                "watches them. flipping: the tracks that hosts came from get the release. "
                "restoring: hosts get their documents back, with the release in force. "
                "putting-back: hosts get their documents back, and their release. done, failed, "
                "aborted: it has ended."
            ),
            examples=["baking"],
        ),
    ] = "moving"
    paused: Annotated[
        bool, Meta(description="Whether it waits for a `resume`.", examples=[False])
    ] = False
    outcome: Annotated[
        Literal["failed", "aborted"],
        Meta(description="How it ends after putting-back.", examples=["failed"]),
    ] = "failed"
    reason: Annotated[
        Reason,
        Meta(
            description="Why it is paused, failed or aborted; else empty.",
            examples=["", "lb1 is degraded"],
        ),
    ] = ""
    waves: Annotated[
        tuple[WaveText, ...],
        Meta(
            min_length=1,
            description=(
                "Each the name of a track, a share of all hosts, or their number, up to which "
                "hosts are moved."
            ),
            examples=[["canary", "25%", "100%"]],
        ),
    ]
    wave: Annotated[Count, Meta(description="Wave under way; the first is 0.", examples=[1])] = 0
    bake: Annotated[
        Wait, Meta(description="Seconds for which each wave is watched.", examples=[60])
    ] = 60
    timeout: Annotated[
        Wait, Meta(description="Seconds that a wave's hosts have to acknowledge.", examples=[60])
    ] = 60
    abort_on: Annotated[
        CriteriaDocument,
        Meta(description="What makes it fail.", examples=[{"nack": True, "drops": 0.1}]),
    ] = CriteriaDocument()
    until: Annotated[
        Time | None,
        Meta(
            description="When waiting fails, or baking ends; null in other states.",
            examples=["2026-01-31T12:01:00Z"],
        ),
    ] = None
    pointers: Annotated[
        dict[Name, str | None],
        Meta(
            description=(
                "Documents of the tracks that hosts came from, as they were then; null if there "
                "was none."
            ),
            examples=[{"stable": '{"release": "2026-01-30.1"}'}],
        ),
    ] = {}
    moved: Annotated[
        tuple[MovedHost, ...],
        Meta(
            description="Hosts that were moved, in this order.",
            examples=[[{"host": "lb1", "wave": 0, "track": "canary"}]],
        ),
    ] = ()
    left_out: Annotated[
        tuple[Name, ...],
        Meta(
            description="Hosts that an operator took off the rollout's track; they stay so.",
            examples=[["lb7"]],
        ),
    ] = ()
    baseline: Annotated[
        BaselineDocument,
        Meta(description="What moved hosts are compared with.", examples=[{"drops": 0.01}]),
    ] = BaselineDocument()
    driver: Annotated[
        str,
        Meta(
            max_length=200,
            description="Process that drives it: user, host, process id and a random part.",
            examples=["ann@admin1 pid 4711 3f9c1d0e"],
        ),
    ]
    started_by: Annotated[
        str, Meta(max_length=200, description="Who started it.", examples=["ann@admin1"])
    ] = ""
    started_at: Annotated[
        Time, Meta(description="When it was started.", examples=["2026-01-31T12:00:00Z"])
    ]
    changed_at: Annotated[
        Time, Meta(description="When its latest step was.", examples=["2026-01-31T12:00:20Z"])
    ]
    traceparent: Traceparent = None
