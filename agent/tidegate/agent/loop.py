# SPDX-License-Identifier: Apache-2.0
"""The agent's loop: woken by etcd, links, orders, signals and time.

Only this loop writes to the data plane, so changes become generations strictly one after another.
The watch, the status writer, the link watch, the journal and the control socket have threads of
their own and only leave mail. Each part says when it is due next; the loop sleeps until the first.
Nothing outside may block it; if anything does, what says that the host is well runs out (`pulse`).
Nothing but the fence may end it either: parts that fail are named and tried again (`beside`).
"""

import logging
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from tidegate import __version__
from tidegate.agent.config import changes, read, reloaded
from tidegate.agent.dead_man import Contact
from tidegate.agent.mailbox import Mail, Mailbox, WakeReason
from tidegate.agent.operator.orders import Posted
from tidegate.agent.operator.socket import ControlSocket
from tidegate.agent.outcome import Applied
from tidegate.agent.parts import make_parts
from tidegate.agent.plane_settings import plane_settings
from tidegate.agent.pulse import HangWatch
from tidegate.agent.readiness import sd_notify
from tidegate.agent.reporter import Reporter
from tidegate.errors import AgentError
from tidegate.event_log import EventLog
from tidegate.http_server import Answer
from tidegate.telemetry import log_format

log = EventLog(__name__)


class Timed(Protocol):
    """A part that time alone may ask for."""

    def next_due(self) -> float | None:
        """Return the monotonic second at which it is due, or None."""


class Agent:
    """One load balancer's agent, from start to stop."""

    def __init__(self, path: Path, *, takes_over: bool = False) -> None:
        """Read the file and open the data plane.

        Args:
            path: of the file.
            takes_over: whether programs that are not certainly this agent's are replaced.

        Raises:
            ConfigError: the file cannot be used.
            CapabilityError, DataplaneError: the data plane cannot be opened.
        """
        self._path = path
        self._config = read(path)
        log_format.use(self._config.log_format)
        logging.getLogger().setLevel(self._config.log_level.upper())
        self._mailbox = Mailbox()
        settings = replace(plane_settings(self._config), file=path, takes_over=takes_over)
        self._parts = parts = make_parts(self._config, settings, self._mailbox)
        self._beside = parts.beside
        self._reporter = Reporter(parts, self._beside, self._config.ready_file)
        self._hang_watch = HangWatch(parts.pulse, self._reporter.show_hang)
        self._is_health_new = self._has_ejected = self._is_reloaded = False
        parts.long_work.beside(self._eject)
        self._socket: ControlSocket | None = None
        self._ends_at: float | None = None
        self._timed_beside: dict[str, Timed] = {
            "contact": parts.changes.dead_man,
            "health": parts.health,
            "announce": parts.announcer,
            "links": parts.links,
            "reap": parts.plane.publisher,
            "audit": parts.auditor,
            "sweep": parts.sweeps,
            "traces": parts.traces.pending,
            "traffic": parts.traffic,
        }

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; then the data plane is left as it is, forwarding."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._mailbox.wake(WakeReason.STOP))
        signal.signal(signal.SIGHUP, lambda *_: self._mailbox.wake(WakeReason.RELOAD))
        self._start()
        sd_notify.notify("READY=1")
        try:
            self._loop()
        finally:
            sd_notify.notify("STOPPING=1")
            self._stop()

    def _start(self) -> None:
        parts, in_force = self._parts, self._parts.changes.in_force
        log.info(
            "start",
            version=__version__,
            host=self._config.host,
            fleet=self._config.fleet,
            release=in_force.release or self._config.release,
            adopted=parts.plane.adopted,
            generation=in_force.number,
        )
        parts.pulse.beat()
        parts.start()
        self._hang_watch.start()
        try:
            self._socket = ControlSocket(
                Path(self._config.control_socket),
                {**parts.routes.routes(), **parts.flows.routes()},
            )
        except AgentError as error:  # without one the agent does all else
            self._reporter.socket_problem = str(error)
            log.warning("control_socket", reason=error)
        self._report()

    def _loop(self) -> None:
        pulse = self._parts.pulse
        while True:
            pulse.beat()
            self._mailbox.wait(min(self._pause(), pulse.interval))
            mail = self._mailbox.collect()
            if WakeReason.STOP in mail.reasons and self._may_end():
                log.info("stop")
                return
            self._handle(mail)
            if self._ends_at is not None and time.monotonic() >= self._ends_at:
                log.info("stop", drained=True)
                return

    def _pause(self) -> float:
        """Return the seconds until something is due."""
        if self._has_ejected:
            return 0.0
        now = time.monotonic()
        due = [self._ends_at, self._parts.changes.next_due(), self._beside.owed_at]
        if self._is_health_new:
            due.append(self._beside.due("health", now))
        for name, part in self._timed_beside.items():
            at = part.next_due()
            due.append(at if at is None else self._beside.due(name, at))
        return min(at for at in due if at is not None) - now

    def _handle(self, mail: Mail) -> None:
        """Make one turn: everything that has arrived, and everything that is due."""
        now, parts, beside = time.monotonic(), self._parts, self._beside
        if WakeReason.RELOAD in mail.reasons:
            beside.owe("reload", self._reload)
        beside.settle()
        is_reload, self._is_reloaded = self._is_reloaded, False
        if is_reload or WakeReason.LINKS in mail.reasons:
            beside.owe("links", lambda: parts.links.refresh(time.monotonic(), woken=True))
            beside.settle("links")
        beside.run("links", lambda: parts.links.refresh(now, woken=False))
        answers = self._run_orders(mail)
        if mail.view is not None:
            parts.changes.accept_view(mail.view)
        is_due = bool(beside.run("contact", self._judge_contact)) or parts.changes.is_due(now)
        is_health_new = self._apply_health(woken=WakeReason.HEALTH in mail.reasons)
        is_health_new, self._has_ejected = is_health_new or self._has_ejected, False
        if is_health_new or answers or mail.view is not None or is_due or is_reload:
            self._note_generations(parts.changes.reconcile().applied)
        beside.run("reap", lambda: parts.plane.publisher.reap(now))
        beside.run("audit", lambda: parts.auditor.audit(time.monotonic()))
        beside.run("sweep", lambda: parts.sweeps.sweep(now))
        beside.run("traces", lambda: parts.traces.pending.complete(now))
        beside.run("traffic", lambda: parts.traffic.sample(now))
        self._report()
        for posted, answer in answers:
            posted.answer.set_result(answer)

    def _judge_contact(self) -> bool:
        """Take back what etcd did not outlive; return whether a hold has ended."""
        changes, follower = self._parts.changes, self._parts.follower
        contact = Contact(
            is_lost=follower.state.phase in ("reconnecting", "stale"),
            last=follower.latest_contact,
            revision=changes.view.snapshot.revision if changes.view else 0,
        )
        target = changes.dead_man.judge(contact)
        if target is not None:
            self._note_generations(changes.take_back(target, contact))
        return changes.ends_hold(contact)

    def _run_orders(self, mail: Mail) -> list[tuple[Posted, Answer]]:
        """Carry out orders; they are answered when what follows from them is in force."""
        answers = []
        for posted in mail.orders:
            if posted.answer.set_running_or_notify_cancel():
                done = self._parts.changes.carry_out(posted.order)
                self._note_generations(done.applied)
                answers.append((posted, done.answer))
        return answers

    def _apply_health(self, *, woken: bool) -> bool:
        """Judge health if there is anything new to judge; return whether it asks for a change."""
        self._is_health_new = woken or self._is_health_new
        return bool(self._beside.run("health", self._judge_health))

    def _judge_health(self) -> bool:
        parts = self._parts
        is_alone = parts.follower.state.phase in ("stale", "fatal")
        in_force, woken = parts.changes.in_force, self._is_health_new
        is_judged = parts.health.judge(in_force, woken=woken, is_alone=is_alone)
        parts.status.compare(parts.health.own_keys)
        is_new = is_judged and parts.changes.flag_unhealthy(parts.health.fitness)
        self._is_health_new = False
        if is_judged:
            self._beside.owe("verdicts", self._submit_verdicts)
            self._beside.settle("verdicts")
        return is_new

    def _submit_verdicts(self) -> None:
        self._parts.status.submit_verdicts(self._parts.health.verdicts())

    def _eject(self) -> None:
        """Take the dead out while a change is in the making; the next turn plans without them."""
        woken = self._mailbox.take(WakeReason.HEALTH)
        self._has_ejected = self._apply_health(woken=woken) or self._has_ejected

    def _note_generations(self, applied: tuple[Applied, ...]) -> None:
        """Have probes and flow traces follow what came into force."""
        for each in applied:
            self._beside.once(
                "flows", partial(self._parts.flows.follow, each.previous, each.generation)
            )
        if applied:  # for 60,000 checks that takes a second, in which others may die
            follow = partial(self._parts.health.follow, applied[-1].generation)
            self._beside.owe("probes", partial(self._parts.long_work.run, follow))
            self._beside.settle("probes")

    def _report(self) -> None:
        self._reporter.report(self._config, is_stopping=self._ends_at is not None)

    def _may_end(self) -> bool:
        """Return whether a signal ends it now: a second one does, or where nothing drains."""
        seconds = self._parts.announcer.drain_seconds
        if self._ends_at is not None or seconds is None:
            return True
        log.info("withdrawn", seconds=seconds, reason="another signal ends the agent at once")
        self._ends_at = time.monotonic() + seconds
        sd_notify.notify("STOPPING=1")
        return False

    def _reload(self) -> None:
        """Read the file again; what cannot change while running is named and stays."""
        sd_notify.reloading()
        try:
            fresh = reloaded(self._path, self._config)
            if fresh is not None:
                changed = changes(self._config, fresh).reloadable
                logging.getLogger().setLevel(fresh.log_level.upper())
                self._parts.reload(fresh)
                self._config = fresh
                log.info("reload", changed=changed)
            self._is_reloaded = True
        finally:
            sd_notify.notify("READY=1")

    def _stop(self) -> None:
        self._hang_watch.stop()
        self._reporter.show_end()
        if self._socket is not None:
            self._socket.close()
        for posted in self._mailbox.collect().orders:
            posted.answer.cancel()
        self._parts.close()
        left = [t.name for t in threading.enumerate() if t is not threading.current_thread()]
        if left:
            log.debug("threads_left", names=left)
