# SPDX-License-Identifier: Apache-2.0
"""What change traces are called: from a write to etcd to the first packet that met it."""

from typing import Final

from tidegate.telemetry.registry import Attribute, SpanType

REVISION: Final = Attribute(
    "tidegate.revision", "int", "Latest revision of etcd that the change was seen at.", "1042"
)
NUMBER: Final = Attribute(
    key="tidegate.generation",
    type="int",
    description="Generation in force at the end: that of the change, or the one that stayed.",
    example="17",
)
DIGEST: Final = Attribute(
    key="tidegate.digest",
    type="string",
    description="Its digest, which is equal on hosts with the same tables.",
    example="9f2c1be0a7d34410",
)
RELEASE: Final = Attribute("tidegate.release", "string", "Release that it is of.", "live")
TRACK: Final = Attribute(
    "tidegate.track",
    "string",
    "Track that the host is on; empty before etcd was read.",
    "stable",
)
CAUSE: Final = Attribute(
    key="tidegate.change.cause",
    type="string",
    description="What caused it: `keys` (etcd), `health`, `time` (windows, drains, ramps), "
    "`rollback`, or `retry` of what had failed.",
    example="keys",
)
OUTCOME: Final = Attribute(
    key="tidegate.change.outcome",
    type="string",
    description="`applied`: a generation came into force. `unchanged`: no difference "
    "to packets. `refused`: by a guard, or it cannot be built. `failed`: by the kernel. "
    "`frozen`: the host keeps what it has.",
    example="applied",
)
KEYS: Final = Attribute(
    key="tidegate.change.keys",
    type="string[]",
    description="First keys that were written or deleted, relative to the release or to the "
    "fleet; 8 at most.",
    example='["pools/web/backends/b1"]',
)
KEY_COUNT: Final = Attribute("tidegate.change.key_count", "int", "How many there were.", "1")
MOVED: Final = Attribute(
    key="tidegate.change.slots.moved",
    type="int",
    description="Slots of tables, of 65537 each, that have another owner now.",
    example="21846",
)
MINIMUM: Final = Attribute(
    "tidegate.change.slots.minimum",
    "int",
    "The least that any tables with these shares move.",
    "21845",
)
VIPS: Final = Attribute(
    key="tidegate.change.vips",
    type="string[]",
    description="VIPs that changed, or whose pool's table did; 8 at most.",
    example='["shop"]',
)
VIP_COUNT: Final = Attribute("tidegate.change.vip_count", "int", "How many there are.", "1")
POOLS: Final = Attribute(
    "tidegate.change.pools",
    "string[]",
    "Pools that changed, or whose table did; 8 at most.",
    '["web"]',
)
POOL_COUNT: Final = Attribute("tidegate.change.pool_count", "int", "How many there are.", "1")
BACKEND_COUNT: Final = Attribute(
    "tidegate.change.backend_count", "int", "Backends that came, went or changed.", "1"
)
REFUSED: Final = Attribute(
    key="tidegate.change.refused",
    type="int",
    description="What was refused of it; the first 16 have a span each.",
    example="0",
)
KEY: Final = Attribute(
    key="tidegate.key",
    type="string",
    description="Key that was refused, relative to the release or to the fleet; empty if it is "
    "all of it.",
    example="vips/shop",
)
FIELD: Final = Attribute(
    "tidegate.field", "string", "Field of the document; empty if it is all of it.", "port"
)
TABLES: Final = Attribute("tidegate.change.tables", "int", "Tables that were filled.", "1")
READ_BACK: Final = Attribute(
    key="tidegate.change.read_back.seconds",
    type="double",
    description="Seconds of it that reading tables back and comparing them took; the first 8 have "
    "a span each.",
    example="0.0002",
)
ERROR_TYPE: Final = Attribute(
    key="error.type",
    type="string",
    description="Where it was refused: `decode`, `schema`, `reference`, `guard`, `build`, "
    "`publish`, or `frozen`; only if it was. The reason is the span's status description.",
    example="guard",
    is_standard=True,
)
ORDER: Final = Attribute("tidegate.order", "string", "`rollback`, `freeze` or `thaw`.", "rollback")
USER: Final = Attribute(
    "user.name", "string", "The host's name of the user who gave it.", "ann", is_standard=True
)
REASON: Final = Attribute(
    "tidegate.order.reason", "string", "Why, as they say; empty if they do not.", "incident 4711"
)

PREFIX: Final = "tidegate.change."
CHANGE: Final = SpanType(
    "tidegate.change",
    "One change on one host, from the moment at which its write was received to the status that "
    "acknowledges it in etcd, or to the first packet that met it if that is later. Its parent is "
    "the `traceparent` of the latest write that carries one.",
    (
        REVISION,
        NUMBER,
        DIGEST,
        RELEASE,
        TRACK,
        CAUSE,
        OUTCOME,
        KEYS,
        KEY_COUNT,
        MOVED,
        MINIMUM,
        VIPS,
        VIP_COUNT,
        POOLS,
        POOL_COUNT,
        BACKEND_COUNT,
        REFUSED,
        ERROR_TYPE,
    ),
    links="the spans of other writes' traces that the same generation has in it",
)
JOINED: Final = SpanType(
    "tidegate.change.joined",
    "In the trace of a write that was put into force together with later ones: what became of it.",
    (REVISION, NUMBER, OUTCOME, KEYS, KEY_COUNT, ERROR_TYPE),
    links="the change's span in the trace of the latest write",
)
REFUSAL: Final = SpanType(
    "tidegate.change.refusal",
    "A document, or all of it, that was refused in the stage that is its parent.",
    (KEY, FIELD, REVISION, ERROR_TYPE),
)
STAGES: Final = (
    SpanType(
        "tidegate.change.receive",
        "From the receipt of the write to the loop's taking it: put together, and waiting.",
    ),
    SpanType(
        "tidegate.change.validate",
        "Documents are read, and checked against each other.",
        (ERROR_TYPE,),
    ),
    SpanType(
        "tidegate.change.guard", "Whether so many VIPs and backends may go at once.", (ERROR_TYPE,)
    ),
    SpanType(
        "tidegate.change.plan",
        "Ids, weights and tables are worked out, and what differs from what is in force.",
    ),
    SpanType(
        "tidegate.change.disruption",
        "Whether tables move no more slots than they must.",
        (ERROR_TYPE,),
    ),
    SpanType(
        "tidegate.change.program",
        "A program that does what the documents need is made unless there is one: compiled, "
        "verified, attached.",
    ),
    SpanType("tidegate.change.entries", "The ledger and the backends' entries are written."),
    SpanType(
        "tidegate.change.fill",
        "New tables are filled where no packet looks, read back and pinned.",
        (TABLES, READ_BACK),
    ),
    SpanType(
        "tidegate.change.swap",
        "The outer map is pointed to them. The system call returns after an RCU grace period, so "
        "that is in it: at its end no packet is in an old table.",
    ),
    SpanType("tidegate.change.vips", "Source routes and VIPs are written, and deleted."),
    SpanType(
        "tidegate.change.record", "What is gone is freed, and the generation is recorded as whole."
    ),
    SpanType("tidegate.change.journal", "The generation is noted in the journal's queue."),
    SpanType(
        "tidegate.change.build", "What was under way when it could not be built.", (ERROR_TYPE,)
    ),
    SpanType(
        "tidegate.change.publish", "What was under way when the kernel refused.", (ERROR_TYPE,)
    ),
)
PART: Final = SpanType(
    "tidegate.change.read_back", "One table is read back from the kernel and compared."
)
LATE: Final = (
    SpanType(
        "tidegate.change.acknowledge",
        "From the end of the work to the moment at which etcd has the status that reports it.",
    ),
    SpanType(
        "tidegate.change.first_packet",
        "From the beginning of the swap to the first sampled packet that met the new tables. "
        "Without one within 30 s it is left out.",
    ),
)
ORDERED: Final = SpanType(
    "tidegate.ordered",
    "An operator's order on this host. A rollback's change is below it.",
    (ORDER, USER, REASON, ERROR_TYPE),
)
SPANS: Final = (CHANGE, JOINED, REFUSAL, *STAGES, PART, *LATE, ORDERED)
