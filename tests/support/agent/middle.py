# SPDX-License-Identifier: Apache-2.0
"""The agent's middle without its clockwork: control, journal and traces over a real data plane."""

import errno
import os
import secrets
import shutil
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from support.documents.keyspaces import Contents, snapshot
from support.packets.kernel import BUILD
from tidegate.agent.config import AgentConfig, Encapsulation
from tidegate.agent.history import Chronicle
from tidegate.agent.journal import files, lines
from tidegate.agent.reconciler import Applied, Control
from tidegate.agent.traces.changes import ChangeTraces
from tidegate.dataplane import plane
from tidegate.dataplane.kernel import maps
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.publish.steps import Step
from tidegate.model.arrivals import NO_ARRIVALS, Arrivals
from tidegate.model.generation import Generation
from tidegate.model.values import Steering, View
from tidegate.planner.guards import Limits
from tidegate.telemetry.span import Span

SMALL = maps.Capacity(flows=8192, syns=1024, fragments=1024)


@dataclass
class Spans:
    """A sink that keeps what it gets."""

    items: list[Span] = field(default_factory=list)

    def emit(self, span: Span) -> None:
        """Keeps it."""
        self.items.append(span)

    def named(self, name: str) -> list[Span]:
        """Those of a name."""
        return [span for span in self.items if span.name == name]


@dataclass
class Middle:
    """A control over a data plane without interfaces, and the journal of what came into force."""

    folder: Path
    pins: Path = field(default_factory=lambda: Path(f"/sys/fs/bpf/tgtest-{secrets.token_hex(4)}"))
    refusals: int = 0
    """How often the kernel refuses the next step of its kind."""
    ahead: float = 0
    """s by which its wall clock was stepped."""
    heard: list[Applied] = field(default_factory=list)
    spans: Spans = field(default_factory=Spans)
    seconds: dict[str, float] = field(default_factory=dict)
    has_samples: bool = False

    def __post_init__(self) -> None:
        settings = plane.Settings(
            self.pins, [], "generic", BUILD, SMALL, Gateways(None, None), grace=0
        )
        sources = Encapsulation(source4=IPv4Network("10.0.0.1"), source6=IPv6Network("fd00::/64"))
        config = AgentConfig(
            interfaces=("eth0",), encapsulation=sources, state_dir=str(self.folder)
        )
        self.plane = plane.DataPlane(settings, self._reached)
        self.control = Control(self.plane, Limits(), lambda: time.time() + self.ahead)
        self.control.applied = self._hear
        self.traces = ChangeTraces(self.spans, self.seconds.__setitem__, self._has_samples)
        self.control.mark = self.traces.mark
        self._config = config
        self._open_chronicle()

    def _open_chronicle(self) -> None:
        self.chronicle = Chronicle(self._config, self.plane.publisher.in_force, lambda: None)

    def _hear(self, applied: Applied) -> None:
        self.heard.append(applied)
        self.chronicle.applied(applied)
        self.traces.applied(applied, self.chronicle.cause.kind)

    def _has_samples(self, _: Generation) -> bool:
        return self.has_samples

    def _reached(self, step: Step) -> None:
        """Raises what the kernel would, between the tables and the VIPs' entries."""
        if step is Step.TABLES_SWAPPED and self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if hasattr(self, "traces"):  # the program comes first
            self.traces.reached(step)

    def want(
        self,
        contents: Contents,
        revision: int,
        arrivals: Arrivals = NO_ARRIVALS,
        freeze: str = "",
    ) -> list[str]:
        """One step to these documents; returns what it refused, as sentences."""
        steering = Steering(revision, "stable", "live", freeze=freeze)
        view = View(steering, snapshot(contents, revision), arrivals)
        self.traces.received(view)
        self.control.take(view)
        return self.step()

    def step(self) -> list[str]:
        """One step, as the agent's loop makes it."""
        self.traces.begin()
        before = self.plane.publisher.in_force.number
        outcome = self.control.step()
        frozen = self.control.frozen if before else ""
        in_force = self.plane.publisher.in_force
        self.traces.end(outcome, self.control.view, in_force, frozen)
        return [rejection.reason for rejection in outcome.rejections]

    def journal(self) -> list[lines.Line]:
        """All lines that are due by now; another chronicle writes what comes after."""
        self.chronicle.close()
        self._open_chronicle()
        there = files.read_all(files.folder_of(self.folder))
        return [line for file in there for line in file.lines]

    def close(self) -> None:
        """Takes everything away."""
        self.chronicle.close()
        self.plane.close()
        shutil.rmtree(self.pins)
