# SPDX-License-Identifier: Apache-2.0
"""Keeps what this host thinks of each backend, while generations come and go.

It joins the three parts: what a generation wants probed, the engine that probes it, and the
standings that follow from the results. It reports changes of state, not probes. Its clock is never
stepped, so that no state lasts longer or shorter when the wall clock is; whoever writes a verdict
says its times in those of the wall clock.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tidegate.event_log import EventLog
from tidegate.health.engine import Engine
from tidegate.health.freshness import Freshness, limit
from tidegate.health.hindrance import Hindrances
from tidegate.health.result import Result
from tidegate.health.standing import Rules, Standing, after, unknown
from tidegate.health.tally import PoolTally, Tally
from tidegate.health.targets import targets
from tidegate.health.way import NAMED_SECONDS, Way
from tidegate.model.generation import Generation, Identity
from tidegate.model.values import BackendKey

log = EventLog(__name__)

_TOLD_EVERY: Final = 10.0
"""Seconds between two lines about hindrances, at least."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Probes since the start, by whether they passed; without those that could not be made."""

    passed: int = 0
    failed: int = 0


class Checker:
    """From `start` to `stop`.

    Args:
        changed: is called when the state or the code of any backend changes, on the engine's
            thread; it should only wake another thread.
        allow_exec: whether checks may run programs.
        way: of the probes' packets.
        clock: one that is never stepped, s.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        allow_exec: bool = False,
        way: Way | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changed = changed
        self._allow_exec = allow_exec
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: Mapping[BackendKey, Rules] = {}
        self._standings: dict[BackendKey, Standing] = {}
        self._identities: dict[BackendKey, Identity] = {}
        self._freshness = Freshness()
        self._late: dict[BackendKey, tuple[Standing, Standing]] = {}
        """What they were when they became late, and what counts meanwhile."""
        self._passed = self._failed = 0
        self._tally = Tally()
        self._hindrances = Hindrances()
        self._told = -_TOLD_EVERY
        """When a hindrance was logged last, s on the monotonic clock."""
        self.engine: Engine[BackendKey] = Engine(self._take, way)

    def start(self) -> None:
        """Start probing; once."""
        self.engine.start()

    def stop(self) -> bool:
        """Stop probing; return whether all threads ended in time."""
        return self.engine.stop()

    def follow(self, generation: Generation) -> None:
        """Probe what this generation wants; what it has in common with the last one goes on."""
        plan = targets(generation, allow_exec=self._allow_exec)
        now = self._clock()
        with self._lock:
            before = self._standings
            # What is known of a server stays known when its name changes.
            known = {self._identities[key]: standing for key, standing in before.items()}
            self._identities = {
                key: generation.backends[key].identity for key in (*plan.targets, *plan.unprobed)
            }
            self._standings = {
                key: _kept(known.get(self._identities[key]), unknown(now)) for key in plan.targets
            } | {
                key: _kept(
                    known.get(self._identities[key]), Standing("unused", "no-check", reason, now)
                )
                for key, reason in plan.unprobed.items()
            }
            self._rules = plan.rules
            pools = {key.pool for key in plan.targets}
            self._freshness.follow(_limits(generation, pools), plan.targets.keys(), now)
            self._tally.keep(pools)
            self._hindrances.keep(plan.targets.keys())
            differs = before != self._standings
        self.engine.probe(plan.targets)
        if differs:
            self._changed()

    def standings(self) -> Mapping[BackendKey, Standing]:
        """Return what this host's checks find now; of one whose checks are late, that they are."""
        with self._lock:
            late = {key: each for key, (_, each) in self._late.items() if key in self._standings}
            return {**self._standings, **late}

    def late(self) -> Collection[BackendKey]:
        """Look whose checks are late, and return them; from now on they have no finding."""
        with self._lock:
            before, self._late = self._late, {}
            for key, limit in self._freshness.late(self._clock()).items():
                was = self._standings[key]
                known = before.get(key)
                is_same = known is not None and known[0] is was
                self._late[key] = known if known and is_same else (was, _late(was, limit))
            return self._late.keys()

    def tallies(self) -> Mapping[str, PoolTally]:
        """Return the number of probes by pool, as of now."""
        with self._lock:
            return self._tally.pools()

    def hindrance(self) -> str:
        """Return which backends this host cannot probe, why, and what to do; empty if none."""
        with self._lock:
            return self._hindrances.sentence()

    @property
    def counts(self) -> Counts:
        """Return the number of probes since the start."""
        return Counts(self._passed, self._failed)

    @property
    def problem(self) -> str:
        """Why probes found out nothing lately, as a sentence; empty if they do."""
        reason, at = self.engine.last_unsent
        if time.monotonic() - at > NAMED_SECONDS:
            return ""
        return (
            "Probes did not leave this host through the tunnel, so they say nothing of backends: "
            f"{self.engine.unsent} since the start, the last one: {reason}"
        )

    @property
    def left_out(self) -> int:
        """Return the number of probes since the start that were due and not made."""
        return self.engine.missed + self.engine.skipped

    def _take(self, key: BackendKey, result: Result) -> None:
        """Take one more result in; called on the engine's thread."""
        with self._lock:
            before, rules = self._standings.get(key), self._rules.get(key)
            if before is None or rules is None:
                return  # its generation has gone meanwhile
            moment = self._clock()
            now = after(before, result, rules, moment)
            if result.is_finding:  # a finding that nothing confirms is none before long
                self._freshness.heard(key, moment)
            if now is not before:
                self._standings[key] = now
            self._tally.add(key.pool, result)
            hindrance_differs = self._hindrances.note(key, result)
        if result.passed:
            self._passed += 1
        elif result.is_finding:
            self._failed += 1
        if hindrance_differs:
            self._tell_hindrance()
        if now is not before and (before.state, before.code) != (now.state, now.code):
            if before.state != now.state:
                log.log(
                    logging.WARNING if now.state == "unhealthy" else logging.INFO,
                    "health",
                    backend=key,
                    state=now.state,
                    code=now.code,
                    reason=now.reason,
                )
            self._changed()

    def _tell_hindrance(self) -> None:
        """Say that there is a hindrance now, or none any more; not for each probe."""
        if time.monotonic() - self._told >= _TOLD_EVERY and (reason := self.hindrance()):
            self._told = time.monotonic()
            log.warning("probes_hindered", reason=reason)
        self._changed()


def _limits(generation: Generation, pools: Collection[str]) -> dict[str, float]:
    """Return when checks of these pools are late, s."""
    checks = {name: generation.pools[name].pool.health for name in pools}
    return {name: limit(h.check) for name, h in checks.items() if h is not None and h.check}


def _late(was: Standing, allowed: float) -> Standing:
    reason = f"No check has ended for {allowed:.0f} s; it was {was.state} before that."
    return replace(was, state="initial", code="late", reason=reason)


def _kept(before: Standing | None, fresh: Standing) -> Standing:
    """Return what was thought of a backend before, unless it was not probed then or is not now."""
    if before is None or (before.state == "unused") != (fresh.state == "unused"):
        return fresh
    return before if fresh.state != "unused" or before.reason == fresh.reason else fresh
