# SPDX-License-Identifier: Apache-2.0
"""The life of a change without the loop around it: real classes over a real data plane."""

import errno
import os
import secrets
import shutil
import time
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from support.documents.keyspaces import Contents, snapshot
from support.packets.kernel import BUILD
from tidegate.agent.change import ChangeLifecycle
from tidegate.agent.config import AgentConfig, Encapsulation
from tidegate.agent.history import History
from tidegate.agent.journal import files, line_format
from tidegate.agent.long_work import LongWork
from tidegate.agent.operator.orders import Order
from tidegate.agent.outcome import Applied
from tidegate.agent.stages import StageRecorder
from tidegate.agent.traces.changes import ChangeTraces
from tidegate.dataplane import plane
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.publish.steps import Step
from tidegate.http_server import Answer
from tidegate.lab import netns
from tidegate.model.received_writes import NO_WRITES, ReceivedWrites
from tidegate.model.values import Steering, View
from tidegate.planner.guards import Limits
from tidegate.telemetry.span import Span

SMALL = maps.Capacity(flows=8192, syns=1024, fragments=1024)


@dataclass
class Spans:
    """A sink that keeps what it gets."""

    items: list[Span] = field(default_factory=list)

    def emit(self, span: Span) -> None:
        """Keep it."""
        self.items.append(span)

    def named(self, name: str) -> list[Span]:
        """Return those of a name."""
        return [span for span in self.items if span.name == name]


@dataclass
class LifecycleHost:
    """A real lifecycle over a real data plane without interfaces, with its history and traces.

    It is in a network namespace of its own, whose addresses are not those of this machine: VIPs may
    have any address.
    """

    folder: Path
    pins: Path = field(default_factory=lambda: Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}"))
    refusals: int = 0
    """How often the kernel refuses the next step of its kind."""
    ahead: float = 0
    """s by which its wall clock was stepped."""
    applied: list[Applied] = field(default_factory=list)
    spans: Spans = field(default_factory=Spans)
    seconds: dict[str, float] = field(default_factory=dict)
    has_samples: bool = False
    long_work: LongWork = field(default_factory=lambda: LongWork(lambda: None))

    def __post_init__(self) -> None:
        settings = plane.Settings(
            self.pins,
            [],
            "generic",
            replace(BUILD, capacity=SMALL),
            Gateways(None, None),
            grace=0,
            aside=self.long_work,
        )
        sources = Encapsulation(source4=IPv4Network("10.0.0.1"), source6=IPv6Network("fd00::/64"))
        config = AgentConfig(
            interfaces=("eth0",), encapsulation=sources, state_dir=str(self.folder)
        )
        self._config = config
        self._stages = StageRecorder()
        self._is_closed = False
        netns.create(self.pins.name)
        with netns.entered(self.pins.name):
            self.plane = plane.DataPlane(settings, self._reached)
        self.history = History(config, self.plane.publisher.in_force, lambda: None)
        self.traces = ChangeTraces(self._stages, self.spans, self.seconds.__setitem__)
        self.changes = ChangeLifecycle(
            self.plane,
            Limits(),
            self.history,
            self._stages,
            self.traces,
            lambda _: self.has_samples,
            lambda: time.time() + self.ahead,
            self.long_work,
        )

    def _reached(self, step: Step) -> None:
        """Raise what the kernel would, between the tables and the VIPs' entries."""
        if step is Step.TABLES_SWAPPED and self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self._stages.reached(step)

    def want(
        self,
        contents: Contents,
        revision: int,
        writes: ReceivedWrites = NO_WRITES,
        freeze: str = "",
    ) -> list[str]:
        """Make a change to these documents; return what it refused, as sentences."""
        steering = Steering(revision, "stable", "live", freeze=freeze)
        self.changes.accept_view(View(steering, snapshot(contents, revision), writes))
        return self.reconcile()

    def reconcile(self) -> list[str]:
        """Make one change; return what it refused, as sentences."""
        with netns.entered(self.pins.name):
            outcome = self.changes.reconcile()
        self.applied += outcome.applied
        return [rejection.reason for rejection in outcome.rejections]

    def order(self, order: Order) -> Answer:
        """Carry out an operator's order; return its answer."""
        with netns.entered(self.pins.name):
            done = self.changes.carry_out(order)
        self.applied += done.applied
        return done.answer

    def journal(self) -> list[line_format.Line]:
        """Close the history and return all lines of its journal."""
        self.history.close()
        self._is_closed = True
        there = files.read_all(files.folder_of(self.folder))
        return [line for file in there for line in file.lines]

    def close(self) -> None:
        """Take everything away."""
        if not self._is_closed:
            self.history.close()
        self.plane.close()
        netns.remove(self.pins.name)
        shutil.rmtree(self.pins)
