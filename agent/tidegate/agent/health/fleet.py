# SPDX-License-Identifier: Apache-2.0
"""This host's findings and the fleet's, joined for the agent's loop.

Backends are probed as the generation in force wants it, also while etcd is away. What this host
finds is written as verdicts; what the others find is read as verdicts, and dated by this host's own
clock (`ballots`). Its own findings count as its probes made them: what is below its own key in etcd
is what others read of it, and no evidence to itself. Without any contact to etcd for a while a host
goes by its own findings alone: hosts may then differ, which is better than to keep what all of them
see dead. It does so until every host has confirmed its verdicts anew, for what is read when contact
is back are verdicts from before, or none (`gap`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from tidegate.agent.health.ballots import Ballots, Received
from tidegate.agent.health.fitness import Evidence, Judgement, Moment, evidence, judge
from tidegate.agent.health.gap import Gap
from tidegate.agent.health.wall import Wall
from tidegate.event_log import EventLog
from tidegate.health.checker import Checker
from tidegate.health.poll import Poll
from tidegate.health.standing import Standing
from tidegate.health.verdict import Opinion, can_be_spared
from tidegate.health.way import Way
from tidegate.keyspace import paths
from tidegate.keyspace.bounds import VERDICTS
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.etcd.watch_loop import WatchState
from tidegate.keyspace.status import verdicts
from tidegate.keyspace.status.own_keys import OwnKeys
from tidegate.keyspace.status.parts import HealthStatus
from tidegate.model.generation import Generation
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey, Fitness, Rejection, Snapshot

log = EventLog(__name__)

_OVERDUE: Final = 3
"""Times the interval of a host's confirmations after which its verdicts count as unconfirmed."""


class _Light(NamedTuple):
    """What a judgement depends on beside the votes and the standings."""

    generation: Generation
    late: frozenset[BackendKey]
    is_unsure: bool
    is_alone: bool
    ahead: float


class FleetHealth:
    """From `start` to `stop`; all but `wake` happens on the caller's thread."""

    def __init__(
        self,
        etcd: EtcdSettings,
        fleet: str,
        host: str,
        wake: Callable[[], None],
        *,
        allow_exec: bool,
        way: Way | None = None,
    ) -> None:
        """Prepare it; nothing is probed or read yet.

        Args:
            etcd: where etcd is.
            fleet: the fleet.
            host: this host, as its verdicts are signed.
            wake: is called, on other threads, when there is something to judge anew.
            allow_exec: whether checks may run programs.
            way: of the probes' packets.
        """
        self._etcd = etcd
        self._prefix = paths.verdict_prefix(etcd.root, fleet)
        self._host = host
        self._wake = wake
        self._clock = time.monotonic
        self._checker = Checker(self._note_finding, allow_exec=allow_exec, way=way)
        self._watch: Watch | None = None
        self._poll = Poll()
        self._ballots = Ballots(host, self._prefix, self._poll)
        self._wall = Wall(self._clock)
        # Each host needs up to a wait and a call to find that etcd is back, and again to write.
        settle = 2 * (etcd.backoff_max + etcd.call_timeout)
        self._gap = Gap(host, settle, etcd.status_ttl)
        self._latest: tuple[Snapshot, float] | None = None
        self._read: Snapshot | None = None
        self._findings = self._findings_judged = 0
        self._breaks = self._breaks_noted = 0
        self._light: _Light | None = None
        self._can_be_spared = False
        self._cast: Mapping[BackendKey, Standing] = {}
        self._encoded: dict[BackendKey, tuple[Standing, bytes]] = {}
        self._encoded_ahead = 0.0
        self.judgement = Judgement({})
        self.fitness: Mapping[BackendKey, Fitness] | None = None
        """What the planner takes; None while the fleet's verdicts are not known yet."""

    @property
    def checks(self) -> Checker:
        """This host's own, for the metrics."""
        return self._checker

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """Verdicts that cannot be read: a few hundred at the most, of each writer some."""
        return self._ballots.rejections

    @property
    def own_keys(self) -> OwnKeys:
        """This host's verdicts as they were read last, by whole keys."""
        return self._ballots.own_keys

    def start(self) -> None:
        """Start probing; once."""
        self._checker.start()

    def stop(self) -> None:
        """End probing and reading."""
        self._checker.stop()
        if self._watch is not None:
            self._watch.stop()

    def follow(self, generation: Generation) -> None:
        """Probe, and read the fleet's verdicts, as this generation wants it."""
        self._checker.follow(generation)
        if self._watch is None and _wants_fleet(generation):
            self._watch = Watch(
                self._etcd, self._prefix, self._deliver, self._note_state, bounds=VERDICTS
            )
            self._watch.start()

    def judge(self, generation: Generation, *, woken: bool, is_alone: bool) -> bool:
        """Bring `judgement` up to date, if there is anything new; return whether it did.

        Args:
            generation: the one in force.
            woken: `wake` was called since the last time.
            is_alone: there has been no contact with etcd for a while.
        """
        now, is_new = self._clock(), False
        if woken:
            findings = self._findings
            is_new, self._findings_judged = findings != self._findings_judged, findings
            is_new |= self._take(now)
        self._mind_gap(now, is_alone=is_alone)
        late = frozenset(self._checker.late())
        alone = self._gap.is_long
        light = _Light(generation, late, self._gap.is_open, alone, self._wall.ahead())
        moment, before = self.judgement.next_moment, self.judgement
        if not is_new and _same(light, self._light) and (moment is None or now < moment):
            return False
        if self._light is None:
            before = replace(before, joined=_joined(generation, light.ahead))
        self._light = light
        standings = self._checker.standings()
        self._cast_own(standings)
        opinion = self._poll.opinion()
        self._judge_blindness(opinion)
        known = self._read is not None or alone or not _wants_fleet(generation)
        at = Moment(now, light.ahead, light.is_unsure)
        self.judgement = judge(generation, standings, None if alone else opinion, at, before)
        self.fitness = self.judgement.fitness if known else None
        _log_change(before, self.judgement)
        return True

    def _judge_blindness(self, opinion: Opinion) -> None:
        """Find out whether the host may withdraw; in a short gap that stays as it was."""
        if not self._gap.is_open:
            self._can_be_spared = can_be_spared(self._host, self._poll.votes, opinion.blind)
        elif self._gap.is_long:
            self._can_be_spared = False

    def _take(self, now: float) -> bool:
        """Read what was delivered last; return whether it says anything new."""
        latest = self._latest
        if latest is None or latest[0] is self._read:
            return False
        before, self._read = self._read, latest[0]
        if before is not None and latest[0].revision < before.revision:
            self._gap.note(now, is_long=False)  # another history, without a broken stream
        refused = self._ballots.unreadable
        is_new = self._ballots.take(latest[0], Received(latest[1], self._wall.ahead()))
        unreadable = self._ballots.unreadable
        if bool(refused) != bool(unreadable):
            log.warning("verdicts_unreadable", total=unreadable, some=self.rejections[:3])
        return is_new or before is None

    def _mind_gap(self, now: float, *, is_alone: bool) -> None:
        """Open, hold open or close the gap."""
        breaks = self._breaks
        if is_alone or breaks != self._breaks_noted:
            self._breaks_noted = breaks
            self._gap.note(now, is_long=is_alone)
        voters = self._poll.votes.keys() - {self._host}
        self._gap.judge(now, voters, self._ballots.confirmed)

    def _cast_own(self, standings: Mapping[BackendKey, Standing]) -> None:
        """Vote as this host's own probes find."""
        for key, standing in standings.items():
            if self._cast.get(key) is not standing:
                self._poll.put(self._host, key, _vote(standing))
        if self._cast.keys() != standings.keys():
            for key in self._cast.keys() - standings.keys():
                self._poll.put(self._host, key, None)
        self._cast = standings

    def next_due(self) -> float | None:
        """Return the monotonic second at which time alone asks for a judgement, or None."""
        return self.judgement.next_moment

    def status(self) -> HealthStatus:
        """Return what is not acted upon, for the status; the fleet calls this host blind."""
        light = self._light
        return HealthStatus(
            blind=self._host in self._poll.opinion().blind,
            broken_checker=self.judgement.is_checker_broken,
            panics=self.judgement.panics,
            waiting=self.judgement.waiting,
            late=len(light.late) if light is not None else 0,
            unreadable=self._ballots.unreadable,
            unconfirmed=self._unconfirmed(),
            hindrance=self._checker.hindrance(),
        )

    def _unconfirmed(self) -> tuple[str, ...]:
        """Return the hosts that have not confirmed their verdicts for too long."""
        if self._gap.is_open:
            return ()  # nobody's can be known
        now, confirmed = self._clock(), self._ballots.confirmed
        late = (h for h, c in confirmed.items() if now - c.received > _OVERDUE * c.said.every)
        return tuple(sorted(late))

    @property
    def can_be_spared(self) -> bool:
        """Whether this host is blind by verdicts that are up to date, and most hosts are not."""
        return self._can_be_spared

    def evidence(self, keys: Iterable[BackendKey]) -> list[Evidence]:
        """Return for each backend which opinion counts, and what this host itself found."""
        found, standings = self.judgement.found, self._checker.standings()
        return [evidence(found.get(key), standings.get(key)) for key in keys]

    def verdicts(self) -> Mapping[str, bytes]:
        """Return this host's verdicts by key; a standing is encoded once."""
        before, self._encoded = self._encoded, {}
        ahead = self._wall.ahead()
        if ahead != self._encoded_ahead:  # the wall clock was stepped, and their times are of it
            before, self._encoded_ahead = {}, ahead
        for key, standing in self._checker.standings().items():
            old = before.get(key)
            if old is None or old[0] is not standing:
                old = standing, _encode(standing, ahead)
            self._encoded[key] = old
        mine = f"{self._prefix}{self._host}/"
        return {f"{mine}{paths.verdict_key(*k)}": text for k, (_, text) in self._encoded.items()}

    def _deliver(self, snapshot: Snapshot) -> None:
        self._latest = snapshot, self._clock()
        self._wake()

    def _note_finding(self) -> None:
        self._findings += 1
        self._wake()

    def _note_state(self, state: WatchState) -> None:
        if state.phase != "connected":
            self._breaks += 1
            self._wake()


def _same(light: _Light, last: _Light | None) -> bool:
    return last is not None and light.generation is last.generation and light[1:] == last[1:]


def _joined(generation: Generation, ahead: float) -> dict[BackendKey, float]:
    """Return when those in service came back, as the generation that was found in force has it."""
    joins = {key: placed.fitness.joins_at for key, placed in generation.backends.items()}
    return {key: at - ahead for key, at in joins.items() if at is not None}


def _vote(standing: Standing) -> Vote | None:
    if standing.state not in ("healthy", "unhealthy"):
        return None
    return Vote(standing.state == "healthy", standing.since, standing.has_recovered)


def _encode(standing: Standing, ahead: float) -> bytes:
    return verdicts.encode(
        standing.state,
        standing.code,
        standing.reason,
        standing.since + ahead,
        has_recovered=standing.has_recovered,
    )


def _log_change(before: Judgement, after: Judgement) -> None:
    """Log what a person must know: that failed backends are kept, and why."""
    if before.panics != after.panics:
        log.warning("panic", pools=after.panics)
    if before.is_checker_broken != after.is_checker_broken:
        log.warning("broken_checker", broken=after.is_checker_broken)


def _wants_fleet(generation: Generation) -> bool:
    return any(
        placed.pool.health is not None and placed.pool.health.mode != "local"
        for placed in generation.pools.values()
    )
