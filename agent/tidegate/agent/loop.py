# SPDX-License-Identifier: Apache-2.0
"""The agent's clockwork: one loop, woken by etcd, links, orders, signals and time.

Only this loop writes to the data plane, so changes become generations strictly one after another.
The watch, the status writer, the link watch, the journal and the control socket have threads of
their own and only leave mail.
"""

import logging
import signal
import threading
import time
from pathlib import Path
from typing import Final

from tidegate import __version__
from tidegate.agent import config as configuration
from tidegate.agent.auditor import Auditor
from tidegate.agent.health.fleet import HealthDesk
from tidegate.agent.history import Chronicle
from tidegate.agent.mailbox import Bell, Mail, Mailbox
from tidegate.agent.metrics.collect import Meters, Sources
from tidegate.agent.operator.execute import Operator
from tidegate.agent.operator.orders import Posted
from tidegate.agent.operator.routes import Desk
from tidegate.agent.operator.socket import ControlSocket
from tidegate.agent.plane_settings import plane_settings
from tidegate.agent.readiness import sd_notify
from tidegate.agent.readiness.announcer import Announcer
from tidegate.agent.readiness.readiness import Condition, unready
from tidegate.agent.readiness.signals import ReadySigns
from tidegate.agent.reconciler import Applied, Control
from tidegate.agent.refusals import RefusalLog
from tidegate.agent.report import Facts, describe
from tidegate.agent.telemetry import Telemetry
from tidegate.agent.traces.changes import ChangeTraces
from tidegate.agent.traces.flows import flow_traces
from tidegate.agent.traffic_rates import Meter
from tidegate.dataplane.links import LinkWatch
from tidegate.dataplane.plane import DataPlane
from tidegate.errors import AgentError, ConfigError, DataplaneError
from tidegate.http_server import Answer
from tidegate.keyspace import paths
from tidegate.keyspace.follow import Follower
from tidegate.keyspace.status.writer import StatusWriter
from tidegate.keyspace.steering import Accepted, Me
from tidegate.model.generation import Generation
from tidegate.model.values import View
from tidegate.telemetry import log_format
from tidegate.telemetry.metrics.recorder import Recorder

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 2.5
"""Doubled after each failure of a row, up to the maximum: 5 s, 10 s …"""
_MAX_RETRY_SECONDS: Final = 60.0
_LINK_REFRESH_SECONDS: Final = 15.0
_IDLE_SECONDS: Final = 60.0


class Agent:
    """One load balancer's agent, from start to stop."""

    def __init__(self, path: Path) -> None:
        """Reads the file and opens the data plane.

        Raises:
            ConfigError: the file cannot be used.
            CapabilityError, DataplaneError: the data plane cannot be opened.
        """
        self._path = path
        self._config = configuration.read(path)
        log_format.use(self._config.log_format)
        logging.getLogger().setLevel(self._config.log_level.upper())
        self._started = time.time()
        self._mailbox = Mailbox()
        # Before the links are first read, so that no change falls between.
        self._links = LinkWatch(lambda: self._mailbox.ring(Bell.LINKS))
        self._plane = DataPlane(plane_settings(self._config))
        self._control = Control(self._plane, self._config.limits())
        in_force = self._plane.publisher.in_force
        self._chronicle = Chronicle(
            self._config, in_force, lambda: self._mailbox.ring(Bell.JOURNAL)
        )
        self._operator = Operator(
            self._control, self._plane.publisher, self._chronicle.past, self._chronicle.ordered
        )
        recorder = self._trace(in_force)
        self._connect(in_force)
        self._meter = Meter(self._plane.packet_outcomes)
        self._meters = Meters(
            Sources(self._plane.counter_reader, self._health.checks, self._follower, self._flows),
            *(recorder, self._config.telemetry, self._telemetry.pipeline.metrics),
        )
        self._desk = Desk(self._mailbox.post, self._chronicle.past, self._meters.text)
        self._door: ControlSocket | None = None
        self._door_fault = ""
        self._links_due = time.monotonic() + _LINK_REFRESH_SECONDS
        self._retry_at: float | None = None
        self._refusals = RefusalLog()
        self._retry_seconds = _RETRY_SECONDS
        self._applied: float | None = None
        self._signs = ReadySigns(self._config.ready_file)
        self._announcer = Announcer(self._config.announce, time.monotonic())
        self._ends_at: float | None = None
        self._auditor = Auditor(self._plane, self._config.audit_interval, time.monotonic())

    def _trace(self, in_force: Generation) -> Recorder:
        """Has changes and flows traced; returns what records how long changes take."""
        self._telemetry = Telemetry(self._config)
        recorder = Recorder(self._telemetry.pipeline.resource, self._telemetry.losses)
        self._traces = ChangeTraces(self._telemetry.sink, recorder.observe)
        self._flows = flow_traces(self._config, self._telemetry.sink, in_force, self._traces)
        self._traces.has_samples = self._flows.has_samples
        self._control.applied = self._applied_one
        self._control.mark = self._traces.mark
        self._plane.publisher.reached = self._traces.reached
        return recorder

    def _connect(self, in_force: Generation) -> None:
        """Makes what reads and writes etcd; nothing is connected yet."""
        config, etcd = self._config, self._config.etcd
        self._follower = Follower(
            *(etcd, config.fleet, Me(config.host, config.track, config.release)),
            Accepted(in_force.release, in_force.pointer),
            self._mailbox.deliver,
            lambda _state: self._mailbox.ring(Bell.ETCD),
        )
        key = paths.status_key(etcd.root, config.fleet, config.host)
        self._status = StatusWriter(etcd, key, on_written=self._traces.acknowledged)
        self._health = HealthDesk(
            *(etcd, config.fleet, config.host, lambda: self._mailbox.ring(Bell.HEALTH)),
            allow_exec=config.health.allow_exec,
        )
        self._chronicle.evidence = self._health.evidence

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT; then the data plane is left as it is, forwarding."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._mailbox.ring(Bell.STOP))
        signal.signal(signal.SIGHUP, lambda *_: self._mailbox.ring(Bell.RELOAD))
        in_force = self._plane.publisher.in_force
        log.info(
            "start version=%s host=%s fleet=%s release=%s adopted=%s generation=%d",
            *(__version__, self._config.host, self._config.fleet),
            in_force.release or self._config.release,
            *(self._plane.adopted, in_force.number),
        )
        self._links.start()
        self._status.start()
        self._follower.start()
        self._health.start()
        self._health.follow(in_force)
        self._flows.start()
        self._meters.start()
        self._open_door()
        self._report()
        sd_notify.notify("READY=1")
        try:
            self._loop()
        finally:
            sd_notify.notify("STOPPING=1")
            self._stop()

    def _open_door(self) -> None:
        """Makes the control socket; without one the agent does all else."""
        try:
            self._door = ControlSocket(
                Path(self._config.control_socket), {**self._desk.routes(), **self._flows.routes()}
            )
        except AgentError as error:
            self._door_fault = str(error)
            log.warning("%s", error)

    def _loop(self) -> None:
        watchdog = sd_notify.watchdog_interval()
        while True:
            self._mailbox.wait(min(self._pause(), watchdog or _IDLE_SECONDS))
            mail = self._mailbox.collect()
            if Bell.STOP in mail.bells and self._is_over():
                log.info("stop")
                return
            self._handle(mail)
            if watchdog:
                sd_notify.notify("WATCHDOG=1")
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                log.info("stop: drained")
                return

    def _is_over(self) -> bool:
        """Whether a signal to end ends it now: a second one does, or where nothing is to drain."""
        seconds = self._announcer.drain_seconds
        if self._ends_at is not None or seconds is None:
            return True
        log.info("stop: withdrawn, going on for %g s; another signal ends it", seconds)
        self._ends_at = time.monotonic() + seconds
        sd_notify.notify("STOPPING=1")
        return False

    def _handle(self, mail: Mail) -> None:
        now = time.monotonic()
        if Bell.RELOAD in mail.bells:
            self._reload()
        if Bell.LINKS in mail.bells or Bell.RELOAD in mail.bells or now >= self._links_due:
            self._follow_links(now)
        answers = self._obey(mail)
        if mail.view is not None:
            self._take(mail.view)
        # While a retry is due later, so is what time does: it would fail in the same way.
        due = self._control.due() if self._retry_at is None else now >= self._retry_at
        heeded = self._heed(Bell.HEALTH in mail.bells)
        if heeded or answers or mail.view is not None or due or Bell.RELOAD in mail.bells:
            self._step()
        self._plane.publisher.reap(now)
        self._auditor.look(time.monotonic())
        self._traces.look(now)
        self._look(now)
        self._report()
        for posted, answer in answers:
            posted.answer.set_result(answer)

    def _obey(self, mail: Mail) -> list[tuple[Posted, Answer]]:
        """Carries out orders; they are answered when what follows from them is in force."""
        before = self._plane.publisher.in_force.number
        answers = [
            (posted, self._traces.ordered(posted.order, self._operator.carry_out))
            for posted in mail.orders
            if posted.answer.set_running_or_notify_cancel()
        ]
        self._note(before)
        return answers

    def _look(self, now: float) -> None:
        try:
            self._meter.look(now)
        except DataplaneError as error:
            log.error("traffic %s", error)  # noqa: TRY400 - the sentence is for an operator

    def _take(self, view: View) -> None:
        frozen = self._control.frozen
        self._traces.received(view)
        self._control.take(view)
        if self._control.frozen != frozen:
            log.warning("frozen reason=%s", self._control.frozen or "no more")

    def _heed(self, rung: bool) -> bool:
        """Judges health if there is anything new to judge; whether that asks for a step."""
        before = self._control.fitness
        is_alone = self._follower.state.phase in ("stale", "fatal")
        in_force = self._plane.publisher.in_force
        if not self._health.judge(in_force, int(time.time()), rung=rung, is_alone=is_alone):
            return False
        self._control.fitness = self._health.fitness
        self._control.hasten()
        self._status.judge(self._health.verdicts())
        return self._control.fitness != before

    def _step(self) -> None:
        before = self._plane.publisher.in_force.number
        self._traces.begin()
        outcome = self._control.step()
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)
        if not outcome.failed:
            self._retry_seconds = _RETRY_SECONDS
        self._retry_at = time.monotonic() + self._retry_seconds if outcome.failed else None
        self._note(before)
        self._refusals.tell(outcome.rejections, time.monotonic())
        in_force = self._plane.publisher.in_force
        kept = self._control.frozen if before else ""
        self._traces.end(outcome, self._control.view, in_force, kept)
        self._chronicle.refused(outcome.rejections, in_force, outcome.revision)

    def _applied_one(self, applied: Applied) -> None:
        self._chronicle.applied(applied)
        self._traces.applied(applied, self._chronicle.cause.kind)
        self._flows.follow(applied.previous, applied.generation)

    def _note(self, before: int) -> None:
        """Takes note of a generation that has come into force since the one of this number."""
        in_force = self._plane.publisher.in_force
        if in_force.number != before:
            self._applied = time.time()
            self._health.follow(in_force)

    def _follow_links(self, now: float) -> None:
        self._links_due = now + _LINK_REFRESH_SECONDS
        try:
            self._plane.follow()
        except DataplaneError as error:
            log.error("interface %s", error)  # noqa: TRY400 - the sentence is for an operator

    def _pause(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        due = [self._links_due, self._meter.next_look]
        reap, withdraw = self._plane.publisher.next_reap, self._announcer.next_look
        known = (self._retry_at, reap, withdraw, self._ends_at, self._traces.next_look)
        due += [at for at in known if at is not None]
        moment = self._control.next_moment()
        judged = self._health.judgement.next_moment
        if judged is not None:
            due.append(now + judged - time.time())
        if moment is not None and self._retry_at is None:
            due.append(now + moment - time.time())
        return max(0.0, min(due) - now)

    def _reload(self) -> None:
        """Reads the file again; what cannot change while running is named and left as it was."""
        sd_notify.reloading()
        try:
            fresh = configuration.read(self._path)
        except ConfigError as error:
            log.error("reload refused: %s; the old settings stay", error)  # noqa: TRY400
        else:
            changes = configuration.changes(self._config, fresh)
            if changes.fixed:
                log.warning("reload: these keys take a restart: %s", ", ".join(changes.fixed))
            self._config = configuration.merged(self._config, fresh, changes.reloadable)
            logging.getLogger().setLevel(self._config.log_level.upper())
            self._control.limits = self._config.limits()
            self._plane.reload(self._config.gateways(), self._config.grace_delay)
            self._auditor.interval = self._config.audit_interval
            log.info("reload changed=%s", ",".join(changes.reloadable) or "nothing")
        sd_notify.notify("READY=1")

    def _show_readiness(self) -> str:
        """Tells files and routers; returns why the host is not ready, empty if it is."""
        condition = Condition(
            interfaces=self._config.interfaces,
            attached=self._plane.modes,
            links=self._plane.links,
            damages=self._auditor.damages,
            generation=self._plane.publisher.in_force.number,
            etcd=self._follower.state,
            stale_limit=self._config.ready_stale_limit,
            is_stopping=self._ends_at is not None,
            stands_back=self._health.can_be_spared and not self._config.ready_when_blind,
        )
        reason = unready(condition, time.time())
        self._signs.show(reason, condition.generation)
        self._announcer.look(
            self._plane.publisher.in_force,
            is_ready=not reason,
            is_stopping=condition.is_stopping,
            now=time.monotonic(),
        )
        return reason

    def _report(self) -> None:
        reason = self._show_readiness()
        problems = (
            *(self._chronicle.problem, self._door_fault),
            *(*self._announcer.problems, *self._meters.problems, *self._telemetry.problems),
        )
        facts = Facts(
            config=self._config,
            generation=self._plane.publisher.in_force,
            outcome=self._control.outcome,
            view=self._control.view,
            frozen=self._control.frozen,
            overrides=self._control.overrides,
            etcd=self._follower.state,
            links=self._plane.links,
            modes=self._plane.modes,
            traffic=self._meter.traffic,
            damages=self._auditor.damages,
            repairs=self._auditor.repairs,
            started=self._started,
            applied=self._applied,
            health=self._health.status(),
            unready=reason,
            warnings=tuple(filter(None, (*problems, self._signs.problem))),
        )
        self._desk.status = describe(facts)
        self._meters.leave(facts, self._desk.status)
        self._status.submit(self._desk.status)

    def _stop(self) -> None:
        self._signs.show("The agent has ended.", self._plane.publisher.in_force.number)
        if self._door is not None:
            self._door.close()
        for posted in self._mailbox.collect().orders:
            posted.answer.cancel()
        self._follower.stop()
        self._health.stop()
        self._status.stop()
        self._flows.stop()
        self._traces.close()
        self._meters.close()  # after what the traces that waited had to say of durations
        self._links.stop()
        self._chronicle.close()
        self._plane.close()
        self._telemetry.close()
        left = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
        if left:
            log.debug("threads left at stop: %s", ", ".join(left))
