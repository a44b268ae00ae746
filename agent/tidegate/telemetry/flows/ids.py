# SPDX-License-Identifier: Apache-2.0
"""Which trace a flow belongs to: a rule that every host of a fleet follows without a word.

A flow may be handed from one load balancer to another, by a router that spreads its routes anew.
The host that gets it sees it in the middle: not its SYN, nor when that was. Both must still make
spans of it in one trace, so the trace id is computed from what both see in each packet, and from
time:

    trace id = BLAKE2b-128(person "tidegate.flow", protocol (1 byte), source address (16),
               source port (2), destination address (16), destination port (2), bucket (8))
    bucket   = floor((t + offset) / 600 s), with t the wall-clock time of the first packet that this
               host saw of the flow
    offset   = the first 4 bytes of BLAKE2b-128 of the same without a bucket, modulo 600 s
    root     = BLAKE2b-64(person "tidegate.root", trace id (16)): the span id of the flow's SYN

Numbers are in network order, and addresses have the 16 bytes of IPv6, IPv4 mapped. An id of 0,
which W3C Trace Context forbids, becomes 1.

Why time is in it: clients use a port again, after a minute at the earliest as a rule. Without time
all the connections that ever had it would be one trace. With short buckets, a shift would often
fall into another bucket than the SYN; with long ones, more connections share a trace. Each flow has
borders of its own, so that no moment parts many flows at once.

What a border does: a flow that shifts when it is `a` seconds old is parted with probability a/600.
So a host that begins in the middle links its span to the root of the bucket before. Whatever began
within the last 600 s began in this bucket or in that one: it is in the same trace or is linked to,
and what is older is in a trace of its own. The host cannot know which of the two it was, so one of
its two references, parent and link, leads to a span that is not there. Hosts' clocks must agree
better than the time that passes between a flow's SYN and its shift.

The root's id is derived too, so that the host in the middle can name it as the parent of its span
without having seen it. A second connection of the same ports in one bucket is a child of the first.
"""

import hashlib
import struct
from typing import Final, NamedTuple

from tidegate.telemetry.span import Context

BUCKET: Final = 600
"""Seconds."""
_SECOND: Final = 1_000_000_000
_PERSON: Final = b"tidegate.flow"
_ROOT: Final = b"tidegate.root"


class FlowKey(NamedTuple):
    """What every packet of a flow has; addresses are 16 bytes, IPv4 mapped."""

    protocol: int
    source: bytes
    source_port: int
    destination: bytes
    port: int


class FlowIds(NamedTuple):
    """Where a flow's spans belong.

    Attributes:
        root: context of the span of the host that saw its SYN.
        before: the same, if the SYN was in the bucket before.
    """

    root: Context
    before: Context


def flow_ids(key: FlowKey, at: int) -> FlowIds:
    """Return the ids of a flow whose first packet on this host was seen at `at` (ns since 1970)."""
    packed = struct.pack(">B16sH16sH", *key)
    offset = int.from_bytes(_hash(packed, 16, _PERSON)[:4]) % BUCKET
    bucket = (at // _SECOND + offset) // BUCKET
    return FlowIds(_context(packed, bucket), _context(packed, bucket - 1))


def _context(packed: bytes, bucket: int) -> Context:
    trace = _hash(packed + struct.pack(">q", bucket), 16, _PERSON)
    trace = trace if any(trace) else (1).to_bytes(16)
    root = int.from_bytes(_hash(trace, 8, _ROOT))
    return Context(int.from_bytes(trace), root or 1)


def _hash(content: bytes, size: int, person: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=size, person=person).digest()
