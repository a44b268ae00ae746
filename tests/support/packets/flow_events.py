# SPDX-License-Identifier: Apache-2.0
"""Events of flows for tests of their readers, as the ring buffer has them."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidegate.dataplane.kernel import layout
from tidegate.model.address import packed
from tidegate.model.decision import Decision, EventKind, Reason

SECOND = 1_000_000_000


class FlowEvent(NamedTuple):
    """One event; times are in seconds, backend 0 means none."""

    kind: EventKind
    at: float = 0.0
    client: str = "192.0.2.7"
    port: int = 40000
    backend: int = 1
    generation: int = 1
    reason: Reason = Reason.NONE
    protocol: int = 6
    vip: str = "198.51.100.1"


def records(flow_events: Iterable[FlowEvent]) -> npt.NDArray[np.void]:
    """Return the events as the reader of the ring buffer would."""
    rows = [
        (
            round(each.at * SECOND),
            each.generation if each.backend else 0,
            1,
            1,
            each.backend,
            int(each.backend > 0),
            7,
            each.kind,
            Decision.CURRENT if each.backend else 0,
            each.reason,
            each.protocol,
            packed(ip_address(each.client)),
            packed(ip_address(each.vip)),
            each.port,
            80,
            0,
        )
        for each in flow_events
    ]
    return np.array(rows, layout.EVENT)
