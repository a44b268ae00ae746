# SPDX-License-Identifier: Apache-2.0
"""Whether this host forwards as it should, so that routers may send it packets. Pure.

Not whether it does what the fleet wants: a host that refuses a document, is frozen, or has lost
etcd forwards rightly on its last generation, and taking it away would only load the others.
Without etcd all hosts of a fleet are stale at once, so by default that does not count at all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tidegate.dataplane.links import Link
from tidegate.keyspace.etcd.watch_loop import WatchState
from tidegate.model.values import Rejection


@dataclass(frozen=True)
class Condition:
    """What readiness is made of.

    Attributes:
        interfaces: those that the agent's file names.
        attached: those that have the program.
        damages: what the audit found and could not repair.
        generation: number of the one in force.
        needed: families of outer packets that its serving backends need: 4, 6.
        stale_limit: seconds without etcd after which a host is not ready; None for never.
        is_stopping: the agent was asked to end.
        stands_back: its health checks find dead what others reach, most hosts do reach it, and the
            agent's file wants such a host to be not ready.
    """

    interfaces: Sequence[str]
    attached: Collection[str]
    links: Mapping[str, Link]
    damages: Sequence[Rejection]
    generation: int
    etcd: WatchState
    needed: Collection[int] = ()
    stale_limit: float | None = None
    is_stopping: bool = False
    stands_back: bool = False


def unready(condition: Condition, now: float) -> str:
    """Return why the host is not ready, as a sentence; empty if it is.

    Args:
        condition: of the host.
        now: monotonic clock, s: a wall clock that is stepped makes no host unready.
    """
    if condition.is_stopping:
        return "The agent is stopping."
    if not condition.generation:
        return "No generation is in force."
    detached = [name for name in condition.interfaces if name not in condition.attached]
    if detached:
        return f"The program is not on {', '.join(detached)}."
    if condition.damages:
        return condition.damages[0].reason
    lacking = [link.missing(condition.needed) for link in condition.links.values()]
    return "; ".join(filter(None, lacking)) or _stale(condition, now) or _blind(condition)


def _stale(condition: Condition, now: float) -> str:
    limit, etcd = condition.stale_limit, condition.etcd
    if limit is None or etcd.phase not in ("stale", "fatal") or now - etcd.since <= limit:
        return ""
    return f"No contact with etcd for longer than ready_stale_limit ({limit:g} s): {etcd.reason}"


def _blind(condition: Condition) -> str:
    if not condition.stands_back:
        return ""
    return "This host finds dead what most hosts reach, and ready_when_blind is false."
