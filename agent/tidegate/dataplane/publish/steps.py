# SPDX-License-Identifier: Apache-2.0
"""The steps of publishing and of a takeover: where they can be watched, timed, killed by a test.

A hook is called after each step. What the steps are for, and why they come in this order, is argued
in `publisher`, and for the last ones in `takeover`.
"""

from collections.abc import Callable
from enum import Enum
from typing import TypeAlias


class Step(Enum):
    """What has just been done. A step that is done for several things is reported once for each."""

    NUMBER_TAKEN = "the generation's number is spent"
    LEDGER_WRITTEN = "pools and backends are recorded"
    STAND_INS_WRITTEN = "stand-ins are those who serve before and after"
    ENTRIES_STAGED = "backends' entries are written, changed addresses where no packet looks"
    ENTRIES_SELECTED = "changed addresses are selected"
    QUIC_WRITTEN = "QUIC server ids are written"
    TABLE_WRITTEN = "a pool's new table is written, and not read back"
    TABLE_FILLED = "a pool's new table is filled and read back"
    TABLE_PINNED = "a pool's new table is pinned"
    TABLES_SWAPPED = "the outer map points to the new tables"
    VIPS_RECORDED = "VIPs are recorded"
    ROUTES_WRITTEN = "source routes are written"
    ADDRESSES_ADDED = "address bits of new VIPs are set"
    VIPS_WRITTEN = "VIPs of one address are written to the image that is not in force"
    VIPS_SELECTED = "that image is in force"
    PREFIXES_WRITTEN = "VIPs that are networks are written"
    PREFIXES_DELETED = "networks that are gone are deleted"
    ADDRESSES_REMOVED = "only address bits of VIPs in force are set"
    ROUTES_DELETED = "source routes that are gone are deleted"
    EMPTIED_TAKEN_OUT = "backends that nobody is led to any more are taken out"
    EMPTIED_SWAPPED = "the outer map points to the tables that are empty now"
    VIPS_FREED = "ids of VIPs that are gone are recorded as freed"
    IDS_FREED = "ids of pools and backends that are gone are recorded as freed"
    QUIC_DELETED = "server ids that are gone are deleted"
    STAND_INS_COMPLETE = "stand-ins are those of the generation"
    ENTRIES_CLEARED = "entries of backends that are gone are empty"
    SLOT_CLEARED = "the outer map has no table of a pool that is gone"
    POOL_UNPINNED = "a pool that is gone has no pinned table"
    NUMBER_RECORDED = "the generation is recorded as complete"
    TABLE_UNPINNED = "the grace delay of a replaced table is over, and its pin is gone"
    TABLE_FREED = "a replaced table is freed"
    PROGRAM_LOADED = "a new program is loaded and proven"
    PROGRAM_PINNED = "it is pinned beside the one that runs"
    PROGRAM_ATTACHED = "it is on every interface"
    PROGRAM_KEPT = "its pin has taken the place of the old one's"
    TAKEOVER_BEGUN = "new maps are pinned beside those whose shape has changed"
    TAKEOVER_FILLED = "what follows from the generation in force is in the new maps"
    TAKEOVER_COPIED = "flows that were new or changed are copied to the new table"
    TAKEOVER_RENAMED = "a new map's pin has taken the place of the old one's"


Reached: TypeAlias = Callable[[Step], None]


def unwatched(step: Step) -> None:
    """Do nothing: the hook of callers that do not watch."""
