# SPDX-License-Identifier: Apache-2.0
"""The attributes that the points of a metric differ in.

They have few values: names of VIPs, pools and backends of the generation in force, and words of
closed lists. No address, port or text that a user wrote is ever an attribute.
"""

from typing import Final

from tidegate.telemetry.registry import Attribute

VIP: Final = Attribute("tidegate.vip", "string", "Name of the VIP.", "web")
ADDRESS: Final = Attribute(
    "tidegate.address", "string", "Address or network of VIPs.", "192.0.2.10"
)
POOL: Final = Attribute("tidegate.pool", "string", "Name of the pool.", "web")
BACKEND: Final = Attribute("tidegate.backend", "string", "Name of the backend in its pool.", "b1")
DECISION: Final = Attribute(
    key="tidegate.decision",
    type="string",
    description="What named the backend: a word of the data plane's list of decisions.",
    example="tracked",
)
DROP_REASON: Final = Attribute(
    key="tidegate.drop.reason",
    type="string",
    description="Why packets were dropped: a word of the data plane's list of reasons.",
    example="syn_limit",
)
REHASH_CAUSE: Final = Attribute(
    key="tidegate.rehash.cause",
    type="string",
    description="Why the slot's owner could not be used: `quarantined` or `gone`.",
    example="gone",
)
INSERT_OUTCOME: Final = Attribute(
    key="tidegate.insert.outcome",
    type="string",
    description="Whether the entry was `written`, or `refused` by the VIP's limit.",
    example="written",
)
MAP: Final = Attribute("tidegate.map", "string", "Name of the kernel's map.", "flows")
KIND: Final = Attribute("tidegate.id.kind", "string", "`vips`, `pools` or `backends`.", "vips")
EVENT_OUTCOME: Final = Attribute(
    key="tidegate.event.outcome",
    type="string",
    description="`sent`, or `lost` to a full ring buffer or the limit of events.",
    example="sent",
)
VERDICT: Final = Attribute(
    key="tidegate.verdict",
    type="string",
    description="What the program returned: `drop`, `pass` or `tx`.",
    example="tx",
)
CPU: Final = Attribute(
    key="cpu.logical_number",
    type="int",
    description="Number of the CPU.",
    example="0",
    is_standard=True,
)
INTERFACE: Final = Attribute(
    key="network.interface.name",
    type="string",
    description="Name of the interface.",
    example="eth0",
    is_standard=True,
)
HOST_STATE: Final = Attribute(
    key="tidegate.host.state",
    type="string",
    description="`starting`, `synced`, `degraded`, `frozen` or `stale`.",
    example="synced",
)
STAGE: Final = Attribute(
    key="tidegate.stage",
    type="string",
    description="Stage of a change, or `total` for all of it.",
    example="swap",
)
REFUSAL_STAGE: Final = Attribute(
    key="tidegate.refusal.stage",
    type="string",
    description="What refuses: `decode`, `schema`, `reference`, `guard`, `build`, `publish` or "
    "`verify`.",
    example="guard",
)
HEALTH_STATE: Final = Attribute(
    key="tidegate.health.state",
    type="string",
    description="What this host finds: `initial`, `healthy`, `unhealthy`, `draining` or `unused`.",
    example="healthy",
)
PROBE_OUTCOME: Final = Attribute(
    key="tidegate.probe.outcome",
    type="string",
    description="`passed`, or how the probe failed, such as `timeout` or `refused`; `host` if this "
    "host could not make it.",
    example="passed",
)
DIGEST: Final = Attribute(
    key="tidegate.digest",
    type="string",
    description="Of the generation in force, equal on every host with the same input.",
    example="5b6cd0…",
)
RELEASE: Final = Attribute(
    key="tidegate.release",
    type="string",
    description="Release that the generation is of.",
    example="live",
)
TRACK: Final = Attribute("tidegate.track", "string", "Track that the host follows.", "stable")
VERSION: Final = Attribute(
    key="service.version",
    type="string",
    description="Version of the agent.",
    example="0.1.0",
    is_standard=True,
)
SIGNAL: Final = Attribute(
    key="tidegate.telemetry.signal",
    type="string",
    description="`traces`, `metrics` or `logs`.",
    example="traces",
)
LOSS: Final = Attribute(
    key="tidegate.telemetry.reason",
    type="string",
    description="Why it was not sent: `queue_full`, `not_exported` or `shutdown`.",
    example="queue_full",
)
FLOW_LOSS: Final = Attribute(
    key="tidegate.flow.reason",
    type="string",
    description="`rate` or `table` (limits of the agent), `late` (after the flow's end), "
    "`collision`, `stop`, or `flood` (of a VIP and no flow).",
    example="rate",
)
