# SPDX-License-Identifier: Apache-2.0
"""This host's findings and the fleet's, joined for the agent's loop.

Backends are probed as the generation in force wants it, also while etcd is away. What this host
finds is written as verdicts; what all hosts find is read as verdicts, this host's own among them,
so that all judge by the same data. Without any contact to etcd for a while a host goes by its own
findings alone: hosts may then differ, which is better than to keep what all of them see dead. It
does so for a little longer when contact is back: what is read then are verdicts from before, or
none, until every host has written what it found meanwhile.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import ceil

from tidegate.agent.health.fitness import Evidence, Judgement, evidence, judge
from tidegate.event_log import EventLog
from tidegate.health.checker import Checker
from tidegate.health.standing import Standing
from tidegate.health.verdict import Opinion, can_be_spared, opinion
from tidegate.keyspace import paths
from tidegate.keyspace.bounds import VERDICTS
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.watch import Watch
from tidegate.keyspace.status import verdicts
from tidegate.keyspace.status.parts import HealthStatus
from tidegate.model.generation import Generation
from tidegate.model.values import BackendKey, Fitness, Rejection, Snapshot

log = EventLog(__name__)

_NOTHING = Opinion({}, frozenset())


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
    ) -> None:
        """Prepare it; nothing is probed or read yet.

        Args:
            etcd: where etcd is.
            fleet: the fleet.
            host: this host, as its verdicts are signed.
            wake: is called, on other threads, when there is something to judge anew.
            allow_exec: whether checks may run programs.
        """
        self._etcd = etcd
        self._prefix = paths.verdict_prefix(etcd.root, fleet)
        self._host = host
        self._wake = wake
        self._checker = Checker(wake, allow_exec=allow_exec)
        self._watch: Watch | None = None
        self._latest: Snapshot | None = None
        self._read: Snapshot | None = None
        self._opinion = _NOTHING
        self._judged: Generation | None = None
        self._was_alone = False
        self._can_be_spared = False
        self._alone_until: int | None = None
        self._encoded: dict[BackendKey, tuple[Standing, bytes]] = {}
        self.judgement = Judgement({})
        self.fitness: Mapping[BackendKey, Fitness] | None = None
        """What the planner takes; None while the fleet's verdicts are not known yet."""
        self.rejections: tuple[Rejection, ...] = ()
        """Verdicts that cannot be read."""

    @property
    def checks(self) -> Checker:
        """This host's own, for the metrics."""
        return self._checker

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
            self._watch = Watch(self._etcd, self._prefix, self._deliver, bounds=VERDICTS)
            self._watch.start()

    def judge(self, generation: Generation, now: int, *, woken: bool, is_alone: bool) -> bool:
        """Bring `judgement` up to date, if there is anything new; return whether it did.

        Args:
            generation: the one in force.
            now: wall clock, s.
            woken: `wake` was called since the last time.
            is_alone: there has been no contact with etcd for a while.
        """
        is_alone = self._goes_alone(now, lost=is_alone)
        moment = self.judgement.next_moment
        same = self._judged is generation and self._was_alone == is_alone
        if same and not woken and (moment is None or now < moment):
            return False
        self._judged, self._was_alone = generation, is_alone
        latest = self._latest
        if latest is not None and latest is not self._read:
            votes, self.rejections = verdicts.votes(latest)
            self._opinion, self._read = opinion(votes), latest
            self._can_be_spared = can_be_spared(self._host, votes, self._opinion.blind)
        before = self.judgement
        known = self._read is not None or is_alone or not _wants_fleet(generation)
        opinions = None if is_alone else self._opinion
        self.judgement = judge(generation, self._checker.standings(), opinions, now)
        moments = filter(None, (self.judgement.next_moment, self._alone_until))
        self.judgement = replace(self.judgement, next_moment=min(moments, default=None))
        self.fitness = self.judgement.fitness if known else None
        _log_change(before, self.judgement)
        return True

    def _goes_alone(self, now: int, *, lost: bool) -> bool:
        """Return whether only this host's findings count: until contact is back and all wrote."""
        if lost:
            # Each host needs up to a wait and a call to find that etcd is back, and again to write.
            self._alone_until = now + ceil(2 * (self._etcd.backoff_max + self._etcd.call_timeout))
        elif self._alone_until is not None and now >= self._alone_until:
            self._alone_until = None
        return self._alone_until is not None

    def next_due(self) -> float | None:
        """Return the monotonic second at which time alone asks for a judgement, or None."""
        moment = self.judgement.next_moment
        return None if moment is None else time.monotonic() + moment - time.time()

    def status(self) -> HealthStatus:
        """Return what is not acted upon, for the status; the fleet calls this host blind."""
        return HealthStatus(
            blind=self._host in self._opinion.blind,
            broken_checker=self.judgement.is_checker_broken,
            panics=self.judgement.panics,
            waiting=self.judgement.waiting,
            hindrance=self._checker.hindrance(),
        )

    @property
    def can_be_spared(self) -> bool:
        """Whether this host is blind, and most hosts are not; false while etcd is away."""
        return self._can_be_spared and not self._was_alone

    def evidence(self, keys: Iterable[BackendKey]) -> list[Evidence]:
        """Return for each backend which opinion counts, and what this host itself found."""
        found, standings = self.judgement.found, self._checker.standings()
        return [evidence(found.get(key), standings.get(key)) for key in keys]

    def verdicts(self) -> Mapping[str, bytes]:
        """Return this host's verdicts by key; a standing is encoded once."""
        before, self._encoded = self._encoded, {}
        for key, standing in self._checker.standings().items():
            old = before.get(key)
            known = old is not None and old[0] is standing
            self._encoded[key] = old if old is not None and known else (standing, _encode(standing))
        mine = f"{self._prefix}{self._host}/"
        return {f"{mine}{paths.verdict_key(*k)}": text for k, (_, text) in self._encoded.items()}

    def _deliver(self, snapshot: Snapshot) -> None:
        self._latest = snapshot
        self._wake()


def _encode(standing: Standing) -> bytes:
    return verdicts.encode(
        standing.state,
        standing.code,
        standing.reason,
        standing.since,
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
