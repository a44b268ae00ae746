# SPDX-License-Identifier: Apache-2.0
"""How a pool's backends are checked: the part of its document, whose structs are values too.

They are part of the pool's document, one frozen struct each, like those of `documents`.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

CheckType = Literal["tcp", "http", "https", "udp", "dns", "grpc", "exec"]
HealthMode = Literal["fleet", "local", "external"]
Text = Annotated[str, Meta(max_length=255)]

FIELDS: Final[dict[CheckType, tuple[str, ...]]] = {
    "tcp": (),
    "http": ("host", "path", "status", "body", "packet_size"),
    "https": ("host", "path", "status", "body", "verify", "packet_size"),
    "udp": ("send", "expect", "packet_size"),
    "dns": ("query", "query_type", "packet_size"),
    "grpc": ("host", "service", "tls", "verify", "packet_size"),
    "exec": ("command",),
}
"""Fields that only some types have."""


class Check(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One probe: what is asked of a backend through the VIP, how often, and what counts as good."""

    type: Annotated[
        CheckType,
        Meta(
            description=(
                "tcp: a handshake. http, https: a GET. udp: a datagram with an answer. dns: a "
                "query. grpc: grpc.health.v1. exec: a program, if the agent's file allows it."
            ),
            examples=["http"],
        ),
    ]
    port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(
            description=(
                "Port that is probed; null is the VIP's. It must be one that a VIP of this address "
                "has, or the probe leaves the tunnel's way."
            ),
            examples=[8080],
        ),
    ] = None
    interval: Annotated[
        float,
        Meta(
            ge=0.1,
            le=300,
            description="Seconds between two probes.",
            extra_json_schema={"unit": "s"},
            examples=[2],
        ),
    ] = 2
    timeout: Annotated[
        float,
        Meta(
            ge=0.05,
            le=60,
            description="Seconds after which a probe has failed; at most the interval.",
            extra_json_schema={"unit": "s"},
            examples=[1],
        ),
    ] = 1
    rise: Annotated[
        int,
        Meta(
            ge=1,
            le=20,
            description="Passes in a row that make it healthy.",
            extra_json_schema={"unit": "1"},
            examples=[2],
        ),
    ] = 2
    fall: Annotated[
        int,
        Meta(
            ge=1,
            le=20,
            description="Failures in a row that make it unhealthy.",
            extra_json_schema={"unit": "1"},
            examples=[3],
        ),
    ] = 3
    jitter_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=50,
            description="Percent of the interval by which probes are spread at random.",
            extra_json_schema={"unit": "%"},
            examples=[10],
        ),
    ] = 10
    source4: Annotated[
        Text | None,
        Meta(
            description="IPv4 address that probes come from; null leaves it to the host's routes.",
            examples=[None, "198.51.100.250"],
        ),
    ] = None
    source6: Annotated[
        Text | None,
        Meta(
            description="IPv6 address that probes come from; null leaves it to the host's routes.",
            examples=[None, "2001:db8::250"],
        ),
    ] = None
    host: Annotated[
        Text,
        Meta(
            description=(
                "http, https, grpc: host that is asked for, and the name that the certificate "
                "must carry; empty is the VIP's address."
            ),
            examples=["shop.example"],
        ),
    ] = ""
    path: Annotated[
        Text, Meta(description="http, https: path and query.", examples=["/healthz"])
    ] = "/"
    status: Annotated[
        tuple[
            Annotated[
                str, Meta(title="status code or range", pattern=r"^[1-5][0-9]{2}(-[1-5][0-9]{2})?$")
            ],
            ...,
        ],
        Meta(
            min_length=1,
            max_length=16,
            description="http, https: status codes, or ranges of them, that are good.",
            examples=[["200-299"]],
        ),
    ] = ("200-299",)
    body: Annotated[
        Text,
        Meta(
            description="http, https: text that the body contains; empty is any.",
            examples=["", "ok"],
        ),
    ] = ""
    verify: Annotated[
        bool, Meta(description="https, grpc: whether the certificate is checked.", examples=[True])
    ] = True
    tls: Annotated[bool, Meta(description="grpc: whether it is over TLS.", examples=[False])] = (
        False
    )
    send: Annotated[Text, Meta(description="udp: text that is sent.", examples=["ping"])] = ""
    expect: Annotated[
        Text,
        Meta(
            description="udp: text that the answer contains; empty is any.", examples=["", "pong"]
        ),
    ] = ""
    query: Annotated[
        Text, Meta(description="dns: name that is asked for.", examples=["www.example"])
    ] = ""
    query_type: Annotated[
        Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"],
        Meta(description="dns: type of the records.", examples=["A"]),
    ] = "A"
    service: Annotated[
        Text,
        Meta(
            description="grpc: service; empty is the server as a whole.", examples=["", "shop.Cart"]
        ),
    ] = ""
    packet_size: Annotated[
        Annotated[int, Meta(ge=576, le=9216)] | None,
        Meta(
            description=(
                "http, https, udp, dns, grpc: size of the IP packet that asks, before it is "
                "encapsulated; what is asked is padded to it. With the size of a full packet of "
                "clients, a way that loses large packets is found. null pads nothing."
            ),
            extra_json_schema={"unit": "By"},
            examples=[None, 1500],
        ),
    ] = None
    command: Annotated[
        tuple[Annotated[str, Meta(max_length=100)], ...],
        Meta(
            max_length=8,
            description="exec: program and its arguments, without a shell.",
            examples=[["/usr/local/bin/check-shop", "--quick"]],
        ),
    ] = ()


class Health(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of a pool's backends, and what it may do to the pool."""

    mode: Annotated[
        HealthMode,
        Meta(
            description=(
                "Whose finding counts. fleet: the majority of hosts. local: each host's own, so "
                "hosts may differ. external: what a control system writes as health verdicts."
            ),
            examples=["fleet"],
        ),
    ] = "fleet"
    check: Annotated[
        Check | None,
        Meta(
            description="How backends are probed; null only with mode external.",
            examples=[{"type": "tcp"}],
        ),
    ] = None
    panic_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=100,
            description="With fewer healthy backends than this percentage all are kept.",
            extra_json_schema={"unit": "%"},
            examples=[50],
        ),
    ] = 50
    most_per_minute: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Backends that health alone may take out within a minute.",
            extra_json_schema={"unit": "1/min"},
            examples=[10],
        ),
    ] = 10
    hold_down: Annotated[
        int,
        Meta(
            ge=0,
            le=3600,
            description=(
                "Seconds for which a backend that keeps failing must pass before it counts as "
                "healthy; doubled with each failure, up to 32 times this. 0 is no hold."
            ),
            extra_json_schema={"unit": "s"},
            examples=[10],
        ),
    ] = 10
