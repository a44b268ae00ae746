# SPDX-License-Identifier: Apache-2.0
"""What flow traces are called."""

from typing import Final

from tidegate.telemetry.registry import Attribute, EventType, SpanType

SOURCE_ADDRESS: Final = Attribute(
    "source.address", "string", "The client's address.", "192.0.2.7", is_standard=True
)
SOURCE_PORT: Final = Attribute("source.port", "int", "Its port.", "40000", is_standard=True)
DESTINATION_ADDRESS: Final = Attribute(
    key="destination.address",
    type="string",
    description="The address that the client sends to.",
    example="198.51.100.1",
    is_standard=True,
)
DESTINATION_PORT: Final = Attribute(
    "destination.port", "int", "The port that the client sends to.", "80", is_standard=True
)
TRANSPORT: Final = Attribute(
    "network.transport", "string", "`tcp` or `udp`.", "tcp", is_standard=True
)
NETWORK_TYPE: Final = Attribute(
    "network.type", "string", "`ipv4` or `ipv6`.", "ipv4", is_standard=True
)
ERROR_TYPE: Final = Attribute(
    key="error.type",
    type="string",
    description="Why the last packet that was dropped was; only if one was.",
    example="no_backend",
    is_standard=True,
)
VIP: Final = Attribute(
    key="tidegate.vip",
    type="string",
    description="Name of the VIP; `#` and its id if the name is not known.",
    example="web",
)
POOL: Final = Attribute("tidegate.pool", "string", "Name of the last backend's pool.", "web")
BACKEND: Final = Attribute(
    key="tidegate.backend",
    type="string",
    description="Name of the last backend; `#` and its id, as with the VIP.",
    example="b1",
)
BACKEND_BEFORE: Final = Attribute(
    "tidegate.backend.before", "string", "Name of the backend that the flow left.", "b2"
)
SLOT: Final = Attribute(
    "tidegate.slot", "int", "The flow's slot in the pool's Maglev table.", "41023"
)
FIRST_GENERATION: Final = Attribute(
    key="tidegate.generation.first",
    type="int",
    description="Generation of the table that chose the first backend; only if a table did.",
    example="7",
)
GENERATION: Final = Attribute(
    key="tidegate.generation",
    type="int",
    description="Generation of the table that chose the backend; of a span, the newest such one. "
    "Not there if no table did: entries of the connection table, marks of SYNs and QUIC server ids "
    "name a backend and no generation.",
    example="9",
)
DECISION: Final = Attribute(
    "tidegate.decision", "string", "How the backend was chosen; docs/dataplane.md.", "syn"
)
REASON: Final = Attribute("tidegate.drop.reason", "string", "Why it was dropped.", "no_backend")
TIMES: Final = Attribute(
    "tidegate.times", "int", "How often it happened at about this time, if more than once.", "12"
)
END: Final = Attribute(
    key="tidegate.flow.end",
    type="string",
    description="Why the span ends: `finished` (FIN), `reset`, `dropped` (nothing of it was ever "
    "forwarded), `idle` (no event for the idle timeout), `replaced` (another connection has "
    "its ports), `stopped` (the agent ends; the flow goes on).",
    example="finished",
)
HAS_BEGIN: Final = Attribute(
    key="tidegate.flow.has_begin",
    type="boolean",
    description="Whether this host saw the flow's first packet, and not only later ones.",
    example="true",
)
MOVES: Final = Attribute(
    "tidegate.flow.moves", "int", "How often it went on to another backend.", "0"
)
DROPS: Final = Attribute(
    "tidegate.flow.drops", "int", "Packets of it that were dropped; only if any were.", "3"
)
BEGINS: Final = Attribute(
    key="tidegate.flow.begins",
    type="int",
    description="SYNs that were forwarded, repeated ones too; only if more than one.",
    example="2",
)
UNTOLD: Final = Attribute(
    key="tidegate.flow.untold",
    type="int",
    description="Events of the flow that the span does not have, since it has 32 at most.",
    example="4",
)
LINK: Final = Attribute(
    key="tidegate.link",
    type="string",
    description="What the link leads to: `change` (the change that moved the flow), or "
    "`bucket_before` (where the flow's SYN is, if it was in the bucket before: see the rule for "
    "trace ids).",
    example="change",
)

WHERE: Final = (POOL, BACKEND, GENERATION, DECISION)
NEW: Final = EventType(
    name="tidegate.flow.new",
    description="A SYN was forwarded, or the first datagram of a tracked flow.",
    attributes=WHERE,
)
MOVED: Final = EventType(
    "tidegate.flow.moved",
    "A packet of the flow went to another backend than the one before it.",
    (*WHERE, BACKEND_BEFORE),
)
PROMOTED: Final = EventType(
    "tidegate.flow.promoted", "An entry was written to the connection table.", WHERE
)
FINISHED: Final = EventType("tidegate.flow.finished", "The client's FIN was forwarded.", WHERE)
RESET: Final = EventType("tidegate.flow.reset", "The client's RST was forwarded.", WHERE)
DROPPED: Final = EventType(
    "tidegate.flow.dropped", "A packet was dropped.", (*WHERE, REASON, TIMES)
)

FLOW: Final = SpanType(
    "tidegate.flow",
    "A sampled flow as one load balancer saw it, from its first packet to FIN, RST or idleness.",
    (
        SOURCE_ADDRESS,
        SOURCE_PORT,
        DESTINATION_ADDRESS,
        DESTINATION_PORT,
        TRANSPORT,
        NETWORK_TYPE,
        ERROR_TYPE,
        VIP,
        POOL,
        BACKEND,
        SLOT,
        FIRST_GENERATION,
        GENERATION,
        DECISION,
        REASON,
        END,
        HAS_BEGIN,
        MOVES,
        DROPS,
        BEGINS,
        UNTOLD,
    ),
    (NEW, MOVED, PROMOTED, FINISHED, RESET, DROPPED),
    "the change that moved the flow; where its SYN may be, if this host did not see it",
)
