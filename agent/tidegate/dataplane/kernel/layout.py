# SPDX-License-Identifier: Apache-2.0
"""The agent's side of bpf/layout.h, as numpy types, and the check that the two are equal."""

from typing import Any, Final

import numpy as np

from tidegate.dataplane.kernel.compiler import Leaf, Program
from tidegate.errors import DataplaneError
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.decision import Decision, Reason
from tidegate.model.generation import WINDOWS
from tidegate.spec.lines import LINE_ENTRIES

ID: Final = np.dtype("<u4")

VIP_KEY: Final = np.dtype([("address", "V16"), ("port", ">u2"), ("protocol", "u1"), ("zero", "u1")])
PREFIX_KEY: Final = np.dtype(
    [("length", "<u4"), ("protocol", "u1"), ("zero", "u1"), ("port", ">u2"), ("address", "V16")]
)
VIP: Final = np.dtype(
    [
        ("id", "<u4"),
        ("incarnation", "<u4"),
        ("pool", "<u4"),
        ("flags", "<u4"),
        ("tag", "<u8"),
        ("salt", "<u8"),
        ("idle", "<u4"),
        ("tcp_idle", "<u4"),
        ("insert_rate", "<u4"),
        ("syn_rate", "<u4"),
        ("syn_prefix4", "u1"),
        ("syn_prefix6", "u1"),
        ("mss", "<u2"),
        ("quic_length", "u1"),
        ("quic_offset", "u1"),
        ("zero", "<u2"),
        ("sampling", "<u4"),
        ("unused", "<u4"),
    ]
)
VIP_PLACE: Final = np.dtype([("key", VIP_KEY), ("zero", "<u4"), ("vip", VIP), ("unused", "V40")])
ADDRESS_WORDS: Final = 1024
ADDRESS_BITS: Final = np.dtype(
    [("hosts", "<u8", (ADDRESS_WORDS,)), ("networks", "<u8", (ADDRESS_WORDS,))]
)
ENDPOINT: Final = np.dtype([("address", "V16"), ("family", "<u4")])
BACKEND: Final = np.dtype(
    [
        ("incarnation", "<u4"),
        ("flags", "u1"),
        ("selected", "u1"),
        ("gue_port", "<u2"),
        ("mtu", "<u4"),
        ("pool", "<u4"),
        ("endpoints", ENDPOINT, (2,)),
        ("unused", "V8"),
    ]
)
LINE: Final = np.dtype(
    [
        ("owners", "<u8", (LINE_ENTRIES,)),
        ("states", "<u4", (LINE_ENTRIES,)),
        ("moments", "<u4"),
    ]
)
OWN_KEY: Final = np.dtype([("address", "V16")])
ROUTE_KEY: Final = np.dtype([("length", "<u4"), ("vip", "<u4"), ("source", "V16")])
ROUTE: Final = np.dtype([("pool", "<u4"), ("flags", "<u4")])
QUIC_KEY: Final = np.dtype([("pool", "<u4"), ("length", "u1"), ("id", "V15")])
STAND_INS: Final = 16
STAND_IN_LIST: Final = np.dtype([("ids", "<u4", (STAND_INS,))])
QUIC_SERVER: Final = np.dtype([("backend", "<u4"), ("backend_incarnation", "<u4")])
BUCKET: Final = np.dtype([("spent", "<u8"), ("unused", "<u8")])
LIMIT_CELL: Final = np.dtype("<u8")
OWN_MACS: Final = 6
LINK: Final = np.dtype(
    [
        ("to4", "V12"),
        ("to6", "V12"),
        ("mtu", "<u4"),
        ("has_gateway4", "u1"),
        ("has_gateway6", "u1"),
        ("takes_any", "u1"),
        ("zero", "u1"),
        ("own", "<u8", (OWN_MACS,)),
    ]
)
VIP_COUNTERS: Final = np.dtype(
    [
        ("packets", "<u8"),
        ("bytes", "<u8"),
        ("decisions", "<u8", (len(Decision),)),
        ("rehashed_quarantined", "<u8"),
        ("rehashed_gone", "<u8"),
        ("tracked", "<u8"),
        ("untracked", "<u8"),
        ("answered", "<u8"),
        ("drops", "<u8", (len(Reason),)),
    ]
)
ADDRESS_COUNTERS: Final = np.dtype([("answered", "<u8"), ("drops", "<u8", (len(Reason),))])
BACKEND_COUNTERS: Final = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
VERDICTS: Final = np.dtype("<u8")
EVENT: Final = np.dtype(
    [
        ("time", "<u8"),
        ("generation", "<u8"),
        ("vip", "<u4"),
        ("vip_incarnation", "<u4"),
        ("backend", "<u4"),
        ("backend_incarnation", "<u4"),
        ("slot", "<u4"),
        ("kind", "u1"),
        ("decision", "u1"),
        ("reason", "u1"),
        ("protocol", "u1"),
        ("source", "V16"),
        ("destination", "V16"),
        ("source_port", ">u2"),
        ("port", ">u2"),
        ("zero", "<u4"),
    ]
)
EVENT_COUNTERS: Final = np.dtype([("sent", "<u8"), ("lost", "<u8")])
WINDOW: Final = np.dtype([("opened", "<u8"), ("closes_at", "<u8")])
SLOT: Final = np.dtype([("current", "<u4"), ("fallback", "<u4")])
_TABLE_FIELDS: Final = [
    ("generation", "<u8"),
    ("window_count", "<u4"),
    ("zero", "<u4"),
    ("windows", WINDOW, (WINDOWS,)),
    ("slots", SLOT, (TABLE_SIZE,)),
    ("window", "u1", (TABLE_SIZE,)),
]
_TABLE_PADDING: Final = -np.dtype(_TABLE_FIELDS).itemsize % 8
TABLE: Final = np.dtype([*_TABLE_FIELDS, ("padding", "u1", (_TABLE_PADDING,))])

VIP_TRACK_TRANSITION: Final = 1 << 0
VIP_TRACK_NONE: Final = 1 << 1
VIP_HASH_SOURCE: Final = 1 << 2
VIP_HASH_SOURCE_PORT: Final = 1 << 3
VIP_PREFIX: Final = 1 << 4
VIP_ECHO: Final = 1 << 5
VIP_ROUTES: Final = 1 << 6
VIP_LONG_WAY: Final = 1 << 7
VIP_MOVED: Final = 1 << 8
VIP_SYN_LONG_WAY: Final = 1 << 9
VIP_SAMPLED: Final = 1 << 10
ADDRESS_PASSES: Final = 1 << 11
ADDRESS_REJECTS: Final = 1 << 12
ADDRESS_ENTRY: Final = 1 << 13

ROUTE_DENY: Final = 1
QUARANTINED: Final = 1
DRAINING: Final = 2

IN_WINDOW: Final = 1 << 31
MAY_BE_TRACKED: Final = 1 << 30
OWNER: Final = MAY_BE_TRACKED - 1

KEY_FIXED_BITS: Final = 32
"""Bits before the address in the keys of `prefixes` and `routes`; they are matched whole."""

_LAYOUTS: Final = {
    "vips": (ID, VIP_PLACE),
    "vip_image": (ID, ID),
    "vip_addresses": (ID, ADDRESS_BITS),
    "prefixes": (PREFIX_KEY, VIP),
    "own_addresses": (OWN_KEY, ID),
    "routes": (ROUTE_KEY, ROUTE),
    "backends": (ID, BACKEND),
    "flows": (ID, LINE),
    "syns": (ID, LINE),
    "fragments": (ID, LINE),
    "quic_servers": (QUIC_KEY, QUIC_SERVER),
    "stand_ins": (ID, STAND_IN_LIST),
    "syn_limits": (ID, LIMIT_CELL),
    "mark_limits": (ID, LIMIT_CELL),
    "insert_limits": (ID, BUCKET),
    "answer_limits": (ID, BUCKET),
    "error_limits": (ID, BUCKET),
    "links": (ID, LINK),
    "vip_counts": (ID, VIP_COUNTERS),
    "address_counts": (ID, ADDRESS_COUNTERS),
    "backend_counts": (ID, BACKEND_COUNTERS),
    "verdict_counts": (ID, VERDICTS),
    "event_space": (ID, EVENT),
    "event_limits": (ID, BUCKET),
    "event_counts": (ID, EVENT_COUNTERS),
    "inner": (ID, TABLE),
}


def _offsets(dtype: np.dtype[Any]) -> tuple[tuple[str, int], ...]:
    if dtype.fields is None:
        return ()
    return tuple((name, int(dtype.fields[name][1])) for name in dtype.names or ())


def check(program: Program) -> None:
    """Compare the compiler's layout with ours.

    Raises:
        DataplaneError: naming the table whose layout differs.
    """
    for table, leaf in program.leaves.items():
        if table not in _LAYOUTS:
            continue
        key, value = _LAYOUTS[table]
        ours = Leaf(key.itemsize, value.itemsize, _offsets(key), _offsets(value))
        same_sizes = (leaf.key_size, leaf.size) == (ours.key_size, ours.size)
        same_fields = leaf.key_fields == ours.key_fields and (
            leaf.fields == ours.fields or table == "inner"
        )
        if not (same_sizes and same_fields):
            raise DataplaneError(
                f"bpf/layout.h and dataplane/kernel/layout.py define map {table!r} differently: "
                f"{leaf} against {ours}"
            )
