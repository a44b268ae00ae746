# SPDX-License-Identifier: Apache-2.0
"""Keeps what this host thinks of each backend, while generations come and go.

It joins the three parts: what a generation wants probed, the engine that probes it, and the
standings that follow from the results. It reports changes of state, not probes.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidegate.event_log import EventLog
from tidegate.health.engine import NAMED_SECONDS, Engine, Way
from tidegate.health.result import Result
from tidegate.health.standing import Rules, Standing, after, unknown
from tidegate.health.tally import PoolTally, Tally
from tidegate.health.targets import targets
from tidegate.model.generation import Generation, Identity
from tidegate.model.values import BackendKey

log = EventLog(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """Probes since the start, by whether they passed."""

    passed: int = 0
    failed: int = 0


class Checker:
    """From `start` to `stop`.

    Args:
        changed: is called when the state or the code of any backend changes, on the engine's
            thread; it should only wake another thread.
        allow_exec: whether checks may run programs.
        way: of the probes' packets.
        clock: wall clock, s.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        allow_exec: bool = False,
        way: Way | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._changed = changed
        self._allow_exec = allow_exec
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: Mapping[BackendKey, Rules] = {}
        self._standings: dict[BackendKey, Standing] = {}
        self._identities: dict[BackendKey, Identity] = {}
        self._passed = self._failed = 0
        self._tally = Tally()
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
            self._tally.keep({key.pool for key in plan.targets})
            differs = before != self._standings
        self.engine.probe(plan.targets)
        if differs:
            self._changed()

    def standings(self) -> Mapping[BackendKey, Standing]:
        """Return what this host's checks find now."""
        with self._lock:
            return dict(self._standings)

    def tallies(self) -> Mapping[str, PoolTally]:
        """Return the number of probes by pool, as of now."""
        with self._lock:
            return self._tally.pools()

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

    def _take(self, key: BackendKey, result: Result) -> None:
        """Take one more result in; called on the engine's thread."""
        with self._lock:
            before, rules = self._standings.get(key), self._rules.get(key)
            if before is None or rules is None:
                return  # its generation has gone meanwhile
            now = after(before, result, rules, self._clock())
            if now is not before:
                self._standings[key] = now
            self._tally.add(key.pool, result)
        if result.passed:
            self._passed += 1
        else:
            self._failed += 1
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


def _kept(before: Standing | None, fresh: Standing) -> Standing:
    """Return what was thought of a backend before, unless it was not probed then or is not now."""
    if before is None or (before.state == "unused") != (fresh.state == "unused"):
        return fresh
    return before if fresh.state != "unused" or before.reason == fresh.reason else fresh
