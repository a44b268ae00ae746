# SPDX-License-Identifier: Apache-2.0
"""The agent's side of bpf/layout.h, as numpy types, and the check that the two are equal."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

import numpy as np

from tidegate.dataplane.compiler import Leaf, Program
from tidegate.errors import DataplaneError
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.decision import Decision
from tidegate.model.generation import WINDOWS
from tidegate.model.values import Address

ID: Final = np.dtype("<u4")

VIP_KEY: Final = np.dtype([("address", "V16"), ("port", ">u2"), ("protocol", "u1"), ("zero", "u1")])
VIP: Final = np.dtype(
    [("id", "<u4"), ("incarnation", "<u4"), ("pool", "<u4"), ("zero", "<u4"), ("tag", "<u8")]
)
ENDPOINT: Final = np.dtype([("address", "V16"), ("family", "<u4")])
BACKEND: Final = np.dtype(
    [
        ("incarnation", "<u4"),
        ("flags", "u1"),
        ("selected", "u1"),
        ("zero", "<u2"),
        ("endpoints", ENDPOINT, (2,)),
    ]
)
FLOW_KEY: Final = np.dtype(
    [("source", "V16"), ("vip", "<u4"), ("source_port", ">u2"), ("port", ">u2")]
)
FLOW: Final = np.dtype(
    [
        ("backend", "<u4"),
        ("backend_incarnation", "<u4"),
        ("vip_incarnation", "<u4"),
        ("zero", "<u4"),
        ("generation", "<u8"),
        ("seen", "<u8"),
    ]
)
LINK: Final = np.dtype(
    [
        ("mac", "V6"),
        ("gateway4", "V6"),
        ("gateway6", "V6"),
        ("has_gateway4", "u1"),
        ("has_gateway6", "u1"),
        ("mtu", "<u4"),
    ]
)
VIP_COUNTERS: Final = np.dtype(
    [
        ("packets", "<u8"),
        ("bytes", "<u8"),
        ("decisions", "<u8", (len(Decision),)),
        ("rehashed", "<u8"),
    ]
)
BACKEND_COUNTERS: Final = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
DROPS: Final = np.dtype("<u8")
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

QUARANTINED: Final = 1
PROTOCOLS: Final = {"tcp": 6, "udp": 17}

_DRAWINGS: Final = {
    "vips": (VIP_KEY, VIP),
    "backends": (ID, BACKEND),
    "flows": (FLOW_KEY, FLOW),
    "syns": (FLOW_KEY, FLOW),
    "links": (ID, LINK),
    "vip_counts": (ID, VIP_COUNTERS),
    "backend_counts": (ID, BACKEND_COUNTERS),
    "drop_counts": (ID, DROPS),
    "inner": (ID, TABLE),
}


def packed(address: Address) -> bytes:
    """16 bytes: IPv6, or IPv4 mapped into it."""
    if isinstance(address, IPv4Address):
        return b"\0" * 10 + b"\xff\xff" + address.packed
    return address.packed


def unpacked(address: bytes) -> Address:
    """The address of 16 bytes."""
    whole = IPv6Address(address)
    return whole.ipv4_mapped or whole


def _offsets(dtype: np.dtype[Any]) -> tuple[tuple[str, int], ...]:
    if dtype.fields is None:
        return ()
    return tuple((name, int(dtype.fields[name][1])) for name in dtype.names or ())


def check(program: Program) -> None:
    """Compares the compiler's layout with ours.

    Raises:
        DataplaneError: naming the table whose drawing differs.
    """
    for table, leaf in program.leaves.items():
        if table not in _DRAWINGS:
            continue
        key, value = _DRAWINGS[table]
        ours = Leaf(key.itemsize, value.itemsize, _offsets(key), _offsets(value))
        same_sizes = (leaf.key_size, leaf.size) == (ours.key_size, ours.size)
        same_fields = leaf.key_fields == ours.key_fields and (
            leaf.fields == ours.fields or table == "inner"
        )
        if not (same_sizes and same_fields):
            raise DataplaneError(
                f"bpf/layout.h and dataplane/layout.py draw map {table!r} differently: "
                f"{leaf} against {ours}"
            )
