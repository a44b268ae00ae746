# SPDX-License-Identifier: Apache-2.0
"""The parts of an agent: made, started and ended in the order in which they need each other.

Making them starts nothing and connects nothing; it opens the data plane.
"""

import time
from dataclasses import dataclass, replace

from tidegate.agent.auditor import Auditor
from tidegate.agent.beside import Beside
from tidegate.agent.change import ChangeLifecycle
from tidegate.agent.config import AgentConfig
from tidegate.agent.health.fleet import FleetHealth
from tidegate.agent.history import History
from tidegate.agent.link_refresh import LinkRefresh
from tidegate.agent.long_work import LongWork
from tidegate.agent.mailbox import Mailbox, WakeReason
from tidegate.agent.metrics.collect import MetricCollector, Sources
from tidegate.agent.operator.routes import OperatorRoutes
from tidegate.agent.plane_start import open_plane
from tidegate.agent.pulse import Pulse
from tidegate.agent.readiness import sd_notify
from tidegate.agent.readiness.announcer import Announcer
from tidegate.agent.stages import StageRecorder
from tidegate.agent.sweeps import Sweeps
from tidegate.agent.telemetry import Telemetry
from tidegate.agent.traces.changes import ChangeTraces
from tidegate.agent.traces.flows import FlowTraces, flow_traces
from tidegate.agent.traffic_rates import TrafficSampler
from tidegate.dataplane.network.watch import LinkWatch
from tidegate.dataplane.plane import DataPlane
from tidegate.dataplane.settings import Settings
from tidegate.keyspace import paths
from tidegate.keyspace.etcd.shared_seed import SharedSeed
from tidegate.keyspace.follower import Follower
from tidegate.keyspace.status.verdicts import confirmation_key
from tidegate.keyspace.status.writer import StatusWriter
from tidegate.keyspace.steering import Accepted, LocalHost
from tidegate.model.generation import Generation
from tidegate.telemetry.metrics.recorder import Recorder


@dataclass(frozen=True)
class Parts:
    """What an agent is made of."""

    link_watch: LinkWatch
    plane: DataPlane
    health: FleetHealth
    history: History
    telemetry: Telemetry
    traces: ChangeTraces
    flows: FlowTraces
    changes: ChangeLifecycle
    follower: Follower
    status: StatusWriter
    traffic: TrafficSampler
    metrics: MetricCollector
    routes: OperatorRoutes
    announcer: Announcer
    auditor: Auditor
    sweeps: Sweeps
    links: LinkRefresh
    pulse: Pulse
    long_work: LongWork
    beside: Beside

    def start(self) -> None:
        """Start all threads."""
        for part in (self.link_watch, self.status, self.follower, self.health):
            part.start()
        self.health.follow(self.changes.in_force)
        self.flows.start()
        self.metrics.start()

    def reload(self, config: AgentConfig) -> None:
        """Take settings that may change while the agent runs."""
        self.changes.set_limits(config.limits())
        self.plane.reload(config.gateways(), config.grace_delay)
        self.auditor.set_interval(config.audit_interval)

    def close(self) -> None:
        """End all threads; the data plane is left as it is, forwarding."""
        self.follower.stop()
        self.health.stop()
        self.status.stop()
        self.flows.stop()
        self.traces.close()
        self.metrics.close()  # after the traces that waited have reported their durations
        self.link_watch.stop()
        self.history.close()
        self.plane.close()
        self.telemetry.close()


def shared_seed(config: AgentConfig, in_force: Generation) -> SharedSeed | None:
    """Return what agrees on the key of the flow hash; None where the agent's file has one."""
    if config.hash_seed:
        return None
    hashed_with = (in_force.hash_seed or config.fleet) if in_force.vips else ""
    return SharedSeed(config.etcd.root, config.fleet, hashed_with)


def make_parts(config: AgentConfig, settings: Settings, mailbox: Mailbox) -> Parts:
    """Make the parts of an agent; their threads leave mail.

    Args:
        config: the agent's file.
        settings: of the data plane.
        mailbox: where they leave it.

    Raises:
        CapabilityError, DataplaneError: the data plane cannot be opened.
    """
    # Before the links are first read, so that no change falls between.
    link_watch = LinkWatch(lambda: mailbox.wake(WakeReason.LINKS))
    pulse = Pulse(config.etcd.status_ttl, sd_notify.watchdog_interval())
    stages = StageRecorder(beat=pulse.beat)
    long_work, beside = LongWork(pulse.progress), Beside()
    plane = open_plane(replace(settings, aside=long_work), stages.reached)
    in_force = plane.publisher.in_force
    health = FleetHealth(
        config.etcd,
        config.fleet,
        config.host,
        lambda: mailbox.wake(WakeReason.HEALTH),
        allow_exec=config.health.allow_exec,
        way=plane.probe_tunnel,
    )
    history = History(config, in_force, lambda: mailbox.wake(WakeReason.JOURNAL), health.evidence)
    telemetry = Telemetry(config)
    recorder = Recorder(telemetry.pipeline.resource, telemetry.losses)
    traces = ChangeTraces(stages, telemetry.sink, recorder.observe)
    flows = flow_traces(config, telemetry.sink, in_force, traces)
    changes = ChangeLifecycle(
        plane,
        config.limits(),
        history,
        stages,
        traces,
        flows.has_samples,
        aside=long_work,
        confirm_delay=config.confirm_delay,
        beside=beside,
    )
    follower = Follower(
        config.etcd,
        config.fleet,
        LocalHost(config.host, config.track, config.release, config.fleet),
        Accepted(in_force.release, in_force.pointer, hash_seed=in_force.hash_seed),
        mailbox.deliver,
        lambda _state: mailbox.wake(WakeReason.ETCD),
        shared_seed(config, in_force),
    )
    metrics = MetricCollector(
        Sources(plane.counter_reader, health.checks, follower, flows),
        recorder,
        config.telemetry,
        telemetry.pipeline.metrics,
    )
    key = paths.status_key(config.etcd.root, config.fleet, config.host)
    own_verdicts = paths.verdict_prefix(config.etcd.root, config.fleet, config.host)
    now = time.monotonic()
    return Parts(
        link_watch=link_watch,
        plane=plane,
        health=health,
        history=history,
        telemetry=telemetry,
        traces=traces,
        flows=flows,
        changes=changes,
        follower=follower,
        status=StatusWriter(
            config.etcd,
            key,
            lambda _reason: mailbox.wake(WakeReason.ETCD),
            traces.pending.acknowledged,
            hang=pulse.hang,
            confirmation=f"{own_verdicts}{confirmation_key()}",
        ),
        traffic=TrafficSampler(plane.packet_outcomes),
        metrics=metrics,
        routes=OperatorRoutes(mailbox.post, history.states, metrics.text, pulse.hang),
        announcer=Announcer(config.announce, now),
        auditor=Auditor(plane, config.audit_interval, now),
        sweeps=Sweeps(plane.sweeper, now),
        links=LinkRefresh(plane, now),
        pulse=pulse,
        long_work=long_work,
        beside=beside,
    )
