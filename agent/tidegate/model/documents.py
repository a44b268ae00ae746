# SPDX-License-Identifier: Apache-2.0
"""The documents of a release, which control systems write, one frozen struct each.

`schemas/` is exported from these structs, so a field's description, unit, default and example are
written here and nowhere else. Unknown fields are refused.
"""

from typing import Annotated

from msgspec import Meta, Struct

from tidegate.model.checks import Health
from tidegate.model.document_types import (
    SERVER_ID_PATTERN,
    BackendState,
    Encapsulation,
    HashFields,
    LongSeconds,
    Name,
    Percent,
    Port,
    Protocol,
    Rate,
    Seconds,
    Time,
    Tracking,
    Unserved,
)
from tidegate.model.traceparent import Traceparent


class SynLimitDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many SYNs one source prefix may send."""

    rate: Annotated[
        Rate, Meta(description="SYNs per second from one source prefix.", examples=[1000])
    ]
    prefix4: Annotated[
        int,
        Meta(
            ge=1,
            le=32,
            description="Length of an IPv4 source prefix.",
            extra_json_schema={"unit": "bit"},
            examples=[24],
        ),
    ] = 24
    prefix6: Annotated[
        int,
        Meta(
            ge=1,
            le=128,
            description="Length of an IPv6 source prefix.",
            extra_json_schema={"unit": "bit"},
            examples=[56],
        ),
    ] = 56


class QuicDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where QUIC connection ids carry the id of the server that made them."""

    server_id_length: Annotated[
        int,
        Meta(
            ge=1,
            le=15,
            description="Bytes of the server id.",
            extra_json_schema={"unit": "By"},
            examples=[8],
        ),
    ]
    offset: Annotated[
        int,
        Meta(
            ge=1,
            le=15,
            description="Bytes of the connection id before the server id.",
            extra_json_schema={"unit": "By"},
            examples=[1],
        ),
    ] = 1


class VipDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A virtual IP address or network, port and protocol, and the pool that serves it."""

    address: Annotated[
        str,
        Meta(
            description="IPv4 or IPv6 address or network (CIDR) that clients connect to.",
            examples=["192.0.2.10", "192.0.2.0/24", "2001:db8:1::/64"],
        ),
    ]
    port: Annotated[
        int, Meta(ge=0, le=65535, description="Destination port; 0 is any port.", examples=[443])
    ]
    protocol: Annotated[Protocol, Meta(description="Transport protocol.", examples=["tcp"])]
    pool: Annotated[Name, Meta(description="Name of the pool that serves it.", examples=["web"])]
    sorry_pool: Annotated[
        Name | None,
        Meta(
            description=(
                "Pool of last resort: it serves while `pool` (or a source route's, for its "
                "clients) has no backend that takes new flows. null is none."
            ),
            examples=["sorry"],
        ),
    ] = None
    unserved: Annotated[
        Unserved,
        Meta(
            description=(
                "What becomes of packets to the address that no VIP takes, ICMP aside. drop: "
                "dropped and counted. reject: TCP is reset, all else told that the port is "
                "unreachable, as often as pings are answered. pass: the host's stack gets them; "
                "where it forwards, they circle until their TTL ends. Of VIPs with one address "
                "the strictest counts, in this order."
            ),
            examples=["drop"],
        ),
    ] = "drop"
    tracking: Annotated[
        Tracking,
        Meta(
            description=(
                "full: every flow is tracked. transition: only flows in slots that changed. none: "
                "no flow is tracked."
            ),
            examples=["full"],
        ),
    ] = "full"
    hash: Annotated[
        HashFields,
        Meta(
            description=(
                "What chooses a backend. 5-tuple: each flow by itself. source: the client's "
                "address. source+port: the client's address and the destination port."
            ),
            examples=["5-tuple"],
        ),
    ] = "5-tuple"
    udp_idle_timeout: Annotated[
        Seconds,
        Meta(
            description="Seconds without a packet after which a UDP flow is forgotten; 0 is never.",
            examples=[60],
        ),
    ] = 60
    tcp_idle_timeout: Annotated[
        LongSeconds,
        Meta(
            description=(
                "Seconds without a packet after which a TCP flow counts as ended: a SYN on its "
                "ports is then a new flow; 0 is never."
            ),
            examples=[4500],
        ),
    ] = 4500
    insert_limit: Annotated[
        Rate,
        Meta(
            description=(
                "New entries in the connection table per second and CPU. Flows beyond it are "
                "forwarded untracked."
            ),
            examples=[100_000],
        ),
    ] = 100_000
    syn_limit: Annotated[
        SynLimitDocument | None,
        Meta(
            description="Limit of SYNs per source prefix; null is no limit.",
            examples=[{"rate": 1000, "prefix4": 24, "prefix6": 56}],
        ),
    ] = None
    mss_clamp: Annotated[
        Annotated[int, Meta(ge=536, le=65535)] | None,
        Meta(
            description="Largest TCP MSS that a SYN may offer, in bytes; null leaves it alone.",
            extra_json_schema={"unit": "By"},
            examples=[1400],
        ),
    ] = None
    echo: Annotated[
        bool, Meta(description="Whether pings to the address are answered.", examples=[True])
    ] = True
    quic: Annotated[
        QuicDocument | None,
        Meta(
            description=(
                "Routing by the server id in QUIC connection ids (plaintext layout of QUIC-LB); "
                "UDP only. Offset and length may be 20 together. null is no QUIC routing."
            ),
            examples=[None, {"server_id_length": 8, "offset": 1}],
        ),
    ] = None
    source_routes: Annotated[
        dict[str, Name],
        Meta(
            description=(
                "Pools of client networks: network (CIDR) to pool; the longest match counts. At "
                "most 100 networks together with `deny`."
            ),
            examples=[{"198.51.100.0/24": "canary"}],
        ),
    ] = {}
    deny: Annotated[
        tuple[str, ...],
        Meta(
            description="Client networks (CIDR) whose packets are dropped; the longest match with "
            "`source_routes` counts.",
            examples=[["203.0.113.0/24"]],
        ),
    ] = ()
    flow_sampling: Annotated[
        int,
        Meta(
            ge=0,
            le=65536,
            description="Flows of 65536 whose events are reported; chosen by the flow hash.",
            extra_json_schema={"unit": "1"},
            examples=[64],
        ),
    ] = 0
    traceparent: Traceparent = None


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
    encapsulation: Annotated[
        Encapsulation,
        Meta(
            description="How packets travel to the backends. ipip: IP in IP. gue: IP in UDP.",
            examples=["ipip"],
        ),
    ] = "ipip"
    gue_port: Annotated[
        Port,
        Meta(description="UDP port that the backends take GUE packets on.", examples=[6080]),
    ] = 6080
    mtu: Annotated[
        Annotated[int, Meta(ge=1328, le=65535)] | None,
        Meta(
            description=(
                "Largest encapsulated packet that reaches the backends, in bytes; null is the MTU "
                "of the interface. At least 1328: an IPv6 packet of 1280 bytes, which no sender "
                "makes smaller, with 40 bytes of outer IPv6 and 8 of UDP."
            ),
            extra_json_schema={"unit": "By"},
            examples=[1500],
        ),
    ] = None
    slow_start: Annotated[
        Seconds,
        Meta(
            description=(
                "Seconds from a backend's `starts_at` until it has its full weight; 0 is at once."
            ),
            examples=[60],
        ),
    ] = 0
    slow_start_steps: Annotated[
        int,
        Meta(
            ge=2,
            le=16,
            description=(
                "Equal steps in which the weight rises in that time, the first at its beginning "
                "and the last at its end."
            ),
            extra_json_schema={"unit": "1"},
            examples=[8],
        ),
    ] = 8
    max_removed_percent: Annotated[
        Percent | None,
        Meta(
            description=(
                "Percent of the serving backends that one change may take out of service; null is "
                "what the agent's file says."
            ),
            examples=[50],
        ),
    ] = None
    health: Annotated[
        Health | None,
        Meta(
            description=("How its backends are checked and what that may do; null checks nothing."),
            examples=[None, {"check": {"type": "http", "path": "/healthz"}}],
        ),
    ] = None
    traceparent: Traceparent = None


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
            extra_json_schema={"unit": "1"},
            examples=[100],
        ),
    ] = 100
    state: Annotated[
        BackendState,
        Meta(
            description=(
                "active: serves. drain: no new flows, keeps its flows. quarantine: failed, its "
                "flows move at once. disabled: as if it did not exist, at once."
            ),
            examples=["active"],
        ),
    ] = "active"
    quic_server_id: Annotated[
        Annotated[str, Meta(title="hexadecimal", pattern=SERVER_ID_PATTERN)] | None,
        Meta(
            description=(
                "Its server id in QUIC connection ids: 1 to 15 bytes in hexadecimal, no other "
                "backend's of its pool. null is none."
            ),
            examples=["0a1b2c3d4e5f6071"],
        ),
    ] = None
    starts_at: Annotated[
        Time | None,
        Meta(
            description=(
                "When it begins to serve (UTC, RFC 3339, in whole seconds, rounded down): no new "
                "flows before, then its pool's `slow_start`. null is at once, with its full weight."
            ),
            examples=["2026-01-31T12:00:00Z"],
        ),
    ] = None
    drain_deadline: Annotated[
        Time | None,
        Meta(
            description=(
                'Only with state "drain": when its flows must be gone (as `starts_at`). From then '
                "they move, as with quarantine. null lets them end by themselves."
            ),
            examples=[None, "2026-01-31T12:30:00Z"],
        ),
    ] = None
    traceparent: Traceparent = None


class SettingsDocument(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all hosts that follow a release have in common."""

    hash_seed: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        Meta(
            description=(
                "Key of the flow hash: a secret, so that nobody outside can aim flows at one "
                "backend. Changing it moves flows that are not tracked. null leaves it to the "
                "agents' files, and where these have none to the secret that agents share."
            ),
            examples=["3f9c1d0e-change-me"],
        ),
    ] = None
    traceparent: Traceparent = None
