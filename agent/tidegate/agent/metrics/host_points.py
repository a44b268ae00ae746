# SPDX-License-Identifier: Apache-2.0
"""Points of the host, its agent and its health checks, from values that the loop has left."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, get_args

from tidegate import __version__
from tidegate.agent.report import Facts
from tidegate.agent.traces.flows import FlowCounts
from tidegate.dataplane.inspect.counter_reader import Census, RunTimes
from tidegate.health.standing import Standing
from tidegate.health.tally import BOUNDS, PoolTally
from tidegate.keyspace.status.document import State, StatusDocument
from tidegate.model.constants import MAX_BACKENDS, MAX_POOLS, MAX_VIPS
from tidegate.model.steering import Health
from tidegate.model.values import BackendKey, Stage
from tidegate.telemetry.metrics.points import ALONE, Family, Points, Series, Spread
from tidegate.telemetry.names import health_metrics as health_names
from tidegate.telemetry.names import metric_attributes as attributes
from tidegate.telemetry.names import metrics as names
from tidegate.telemetry.registry import Attribute, Instrument

_STATES: Final = get_args(State)
_HEALTH: Final = get_args(Health)
_STAGES: Final = get_args(Stage)
_ID_LIMITS: Final = {"vips": MAX_VIPS - 1, "pools": MAX_POOLS - 1, "backends": MAX_BACKENDS - 1}


@dataclass(frozen=True)
class LastTurn:
    """What the loop left at the end of its last turn.

    Attributes:
        document: the status that was made of the facts.
        state_times: seconds in each state until `state_since`, a second of the monotonic clock.
    """

    facts: Facts
    document: StatusDocument
    state_times: Mapping[str, float]
    state_since: float


class StateClock:
    """Measures how long the host is in each state; on the loop's thread."""

    def __init__(self, now: float) -> None:
        """Begin at this second of the monotonic clock."""
        self._state = ""
        self.since = now
        self.times: Mapping[str, float] = dict.fromkeys(_STATES, 0.0)

    def enter(self, state: str, now: float) -> None:
        """Take note that the host is in this state at this second."""
        if state == self._state:
            return
        if self._state:
            spent = self.times[self._state] + now - self.since
            self.times = {**self.times, self._state: spent}
        self._state, self.since = state, now


def of_host(turn: LastTurn, contact: float, now: float, began: int) -> list[Family]:
    """Return points of the generation, the state and the interfaces.

    Args:
        turn: the loop's last one.
        contact: monotonic second of the last contact to etcd.
        now: monotonic clock, s.
        began: when the agent started, ns since 1970.
    """
    facts, document = turn.facts, turn.document
    generation = facts.generation
    times = dict(turn.state_times)
    times[document.state] += max(0.0, now - turn.state_since)
    stages = Counter(each.stage for each in (*facts.damages, *facts.outcome.rejections))
    made_of = (generation.digest, generation.release, document.track, __version__)
    info = (attributes.DIGEST, attributes.RELEASE, attributes.TRACK, attributes.VERSION)
    used = {
        "vips": len(generation.vips),
        "pools": len(generation.pools),
        "backends": len(generation.backends),
    }
    queues = {name: link.queues for name, link in facts.links.items()}
    attached = {name: int(name in facts.modes) for name in facts.config.interfaces}
    return [
        _one(names.GENERATION, generation.number),
        _one(names.REVISION, generation.revision),
        Points(names.GENERATION_INFO, Series(info, [made_of]), [1]),
        _by(names.STATE, attributes.HOST_STATE, {s: int(s == document.state) for s in _STATES}),
        _by(names.STATE_TIME, attributes.HOST_STATE, times, began),
        _one(names.READY, int(document.ready)),
        _one(names.ETCD_AGE, max(0.0, now - contact)),
        _by(names.REFUSALS, attributes.REFUSAL_STAGE, {stage: stages[stage] for stage in _STAGES}),
        _one(names.REPAIRS, facts.repairs, began),
        _by(names.IDS, attributes.KIND, used),
        _by(names.RESTING_IDS, attributes.KIND, dict.fromkeys(used, 0) | {**facts.resting}),
        _by(names.ID_LIMIT, attributes.KIND, _ID_LIMITS),
        _by(names.RX_QUEUES, attributes.INTERFACE, queues),
        _by(names.ATTACHED, attributes.INTERFACE, attached),
    ]


def of_health(turn: LastTurn, began: int) -> list[Family]:
    """Return points that say why failed backends are left in, or another pool serves.

    Args:
        turn: the loop's last one.
        began: when the agent started, ns since 1970.
    """
    health, generation = turn.facts.health, turn.facts.generation
    checked = (name for name, placed in generation.pools.items() if placed.pool.health is not None)
    last_resort = (name for name, placed in generation.vips.items() if placed.vip.sorry_pool)
    sorry = turn.document.on_sorry_pool
    panics = {name: int(name in health.panics) for name in checked}
    replaced = {name: int(name in sorry) for name in last_resort}
    return [
        _one(health_names.BLIND, int(health.blind)),
        _one(health_names.BROKEN_CHECKER, int(health.broken_checker)),
        _one(health_names.WAITING, health.waiting),
        _one(health_names.LATE, health.late),
        _one(health_names.UNCONFIRMED, len(health.unconfirmed)),
        _one(health_names.UNREADABLE, health.unreadable),
        _one(health_names.OVERWRITTEN, health.overwritten, began),
        _by(health_names.PANIC, attributes.POOL, panics),
        _by(health_names.ON_SORRY_POOL, attributes.VIP, replaced),
    ]


def of_maps(
    written: Mapping[str, int], census: Census | None, limits: Mapping[str, int]
) -> list[Family]:
    """Return points that say how full the kernel's maps are."""
    entries = {**written, **(census.entries if census else {})}
    return [
        _by(names.MAP_ENTRIES, attributes.MAP, entries),
        _by(names.MAP_LIMIT, attributes.MAP, limits),
    ]


def of_program(times: RunTimes, began: int) -> list[Family]:
    """Return points that say how long the program took."""
    return [
        _one(names.PROGRAM_TIME, times.nanoseconds / 1e9, began),
        _one(names.PROGRAM_RUNS, times.runs, began),
    ]


def of_flows(counts: FlowCounts, began: int) -> list[Family]:
    """Return points that say what became of events of sampled flows."""
    dropped = {**counts.dropped, "flood": counts.floods}
    return [
        _one(names.FLOW_SPANS, counts.spans, began),
        _one(names.FLOW_EVENTS, counts.events, began),
        _by(names.FLOW_DROPS, attributes.FLOW_LOSS, dropped, began),
        _one(names.FLOW_REFUSED, counts.refused, began),
        _one(names.FLOW_OPEN, counts.followed),
    ]


class CheckPoints:
    """What this host's checks find, and how they went; the backends' names are kept.

    Args:
        began: when the agent started, ns since 1970.
    """

    def __init__(self, began: int) -> None:
        self._began = began
        self._backends = Series((attributes.POOL, attributes.BACKEND), [])

    def points(
        self,
        standings: Mapping[BackendKey, Standing],
        tallies: Mapping[str, PoolTally],
        now: float,
    ) -> list[Family]:
        """Return all of them.

        Args:
            standings: of each backend in force.
            tallies: by pool.
            now: monotonic clock, s.
        """
        found = Counter([(key.pool, standing.state) for key, standing in standings.items()])
        pools = sorted({key.pool for key in standings})
        states = Series(
            (attributes.POOL, attributes.HEALTH_STATE), [(p, s) for p in pools for s in _HEALTH]
        )
        checked = {key: each for key, each in standings.items() if each.state != "unused"}
        if self._backends.rows != [*checked]:
            self._backends = Series((attributes.POOL, attributes.BACKEND), [*checked])
        healthy = [int(each.state == "healthy") for each in checked.values()]
        ages = [max(0.0, now - each.since) for each in checked.values()]
        return [
            Points(
                health_names.POOL_BACKENDS, states, [found[p, s] for p in pools for s in _HEALTH]
            ),
            Points(health_names.BACKEND_HEALTHY, self._backends, healthy),
            Points(health_names.BACKEND_STATE_AGE, self._backends, ages),
            *self._probes(tallies),
        ]

    def _probes(self, tallies: Mapping[str, PoolTally]) -> list[Family]:
        outcomes = {(p, code): n for p, t in tallies.items() for code, n in t.by_code.items()}
        of_probes = Series((attributes.POOL, attributes.PROBE_OUTCOME), [*outcomes], self._began)
        return [
            Points(health_names.PROBES, of_probes, [*outcomes.values()]),
            Spread(
                health_names.PROBE_DURATION,
                Series((attributes.POOL,), [(pool,) for pool in tallies], self._began),
                BOUNDS,
                [tuple(each.by_duration) for each in tallies.values()],
                [each.seconds for each in tallies.values()],
            ),
        ]


def _one(what: Instrument, value: float, began: int = 0) -> Points:
    return Points(what, Series((), ALONE, began), [value])


def _by(what: Instrument, key: Attribute, values: Mapping[str, float], began: int = 0) -> Points:
    return Points(what, Series((key,), [(word,) for word in values], began), list(values.values()))
