# SPDX-License-Identifier: Apache-2.0
"""What the agent shows at the end of each turn: readiness, announcements, status, metrics."""

import time

from msgspec import structs

from tidegate.agent.beside import Beside
from tidegate.agent.config import AgentConfig
from tidegate.agent.parts import Parts
from tidegate.agent.readiness import sd_notify
from tidegate.agent.readiness.readiness import Condition, unready
from tidegate.agent.readiness.signals import ReadySignals
from tidegate.agent.report import Facts, describe
from tidegate.dataplane.instance import instance
from tidegate.model.generation import FreedIds
from tidegate.planner.ids import resting


class Reporter:
    """Shows the state of an agent.

    Args:
        parts: of the agent.
        beside: what may fail.
        ready_file: absolute path of a file that exists while the host is ready; empty for no file.
    """

    def __init__(self, parts: Parts, beside: Beside, ready_file: str) -> None:
        self._parts = parts
        self._beside = beside
        self._started = time.time()
        self._instance = instance(parts.plane.publisher.mirror.fds)
        self._signals = ReadySignals(ready_file)
        self._rested: tuple[FreedIds | None, int, dict[str, int]] = (None, 0, {})
        self.socket_problem = ""
        """Why there is no control socket; empty if there is."""

    def report(self, config: AgentConfig, *, is_stopping: bool) -> None:
        """Bring readiness, announcements, status and metrics up to date; it may fail.

        A host whose state cannot be reported is not ready, and its status is not kept: it goes.
        """
        pulse, beside = self._parts.pulse, self._beside
        beside.run("report", lambda: self._report(config, is_stopping=is_stopping))
        failure = beside.fails("report")
        fault = f"The agent's state cannot be reported: {failure}." if failure else ""
        if fault == pulse.fault:
            return
        pulse.fault = fault
        if fault:
            self.show_hang(fault)
        else:  # what was just reported says that it is not ready
            beside.run("report", lambda: self._report(config, is_stopping=is_stopping))

    def _report(self, config: AgentConfig, *, is_stopping: bool) -> None:
        parts = self._parts
        reason = self._show_readiness(config, is_stopping=is_stopping)
        problems = (
            parts.history.problem,
            self.socket_problem,
            *self._beside.problems,
            *parts.plane.problems,
            parts.auditor.problem,
            parts.health.checks.problem,
            parts.traffic.problem,
            *parts.announcer.problems,
            *parts.metrics.problems,
            *parts.telemetry.problems,
            self._signals.problem,
            self._seed_problem(),
            parts.status.own_keys.problem,
        )
        changes, plane = parts.changes, parts.plane
        facts = Facts(
            config=config,
            generation=changes.in_force,
            outcome=changes.outcome,
            view=changes.view,
            frozen=changes.frozen,
            overrides=changes.overrides,
            etcd=parts.follower.state,
            links=plane.links,
            modes=plane.modes,
            needed=plane.needed_families,
            traffic=parts.traffic.traffic,
            damages=parts.auditor.damages,
            repairs=parts.auditor.repairs,
            started=self._started,
            applied=changes.applied_at,
            health=structs.replace(
                parts.health.status(), overwritten=parts.status.own_keys.overwritten
            ),
            unready=reason,
            instance=self._instance,
            unwritten=parts.status.problem,
            warnings=tuple(filter(None, problems)),
            unreadable=parts.health.rejections,
            resting=self._resting(changes.in_force.freed),
        )
        document = describe(facts)
        parts.routes.status = document
        parts.status.submit(document)
        self._beside.run("metrics", lambda: parts.metrics.update(facts, document))

    def _resting(self, freed: FreedIds) -> dict[str, int]:
        """Count resting ids, once a minute and change: there may be 65,535."""
        minute = int(time.time()) // 60
        if self._rested[0] is not freed or self._rested[1] != minute:
            self._rested = (freed, minute, resting(freed, 60 * minute))
        return self._rested[2]

    def _seed_problem(self) -> str:
        """Return what is wrong with the key of the flow hash, if that is the one in force."""
        changes = self._parts.changes
        steering, seed = changes.view and changes.view.steering, changes.in_force.hash_seed
        if steering is None or seed not in (None, steering.hash_seed):
            return ""
        return steering.seed_warning

    def show_hang(self, reason: str) -> None:
        """Show that the loop hangs; on another thread than its own."""
        sd_notify.notify(f"STATUS={reason}")
        self._signals.withdraw()

    def show_end(self) -> None:
        """Show that the agent has ended."""
        generation = self._parts.changes.in_force
        self._signals.show("The agent has ended.", generation.number)

    def _show_readiness(self, config: AgentConfig, *, is_stopping: bool) -> str:
        """Show readiness to files and routers; return why the host is not ready, or nothing."""
        parts = self._parts
        generation = parts.changes.in_force
        condition = Condition(
            interfaces=config.interfaces,
            attached=parts.plane.modes,
            links=parts.plane.links,
            needed=parts.plane.needed_families,
            damages=parts.auditor.damages,
            generation=generation.number,
            etcd=parts.follower.state,
            stale_limit=config.ready_stale_limit,
            is_stopping=is_stopping,
            stands_back=parts.health.can_be_spared and not config.ready_when_blind,
        )
        reason = parts.pulse.fault or unready(condition, time.monotonic())
        self._signals.show(reason, generation.number)
        self._beside.run(
            "announce",
            lambda: parts.announcer.update(
                generation, is_ready=not reason, is_stopping=is_stopping, now=time.monotonic()
            ),
        )
        return reason
