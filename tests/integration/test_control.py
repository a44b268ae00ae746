# SPDX-License-Identifier: Apache-2.0
"""Steps of the agent's middle on a real data plane, where the kernel refuses half of one."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from documents import WEB, Contents, snapshot, vip
from kernel import BUILD
from tidegate.agent.chronicle import Chronicle
from tidegate.agent.config import AgentConfig, Encapsulation
from tidegate.agent.control import Applied, Control
from tidegate.agent.journal import files, lines, replay
from tidegate.dataplane import host, maps
from tidegate.dataplane.links import Gateways
from tidegate.dataplane.steps import Step
from tidegate.model.values import Steering, View
from tidegate.planner.guards import Limits

pytestmark = pytest.mark.root

SMALL = maps.Capacity(flows=8192, syns=1024, fragments=1024)
MORE = WEB | {"pools/web/backends/b": {"address": "198.51.100.2"}, "vips/other": vip(last=2)}


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

    def __post_init__(self) -> None:
        settings = host.Settings(
            self.pins, [], "generic", BUILD, SMALL, Gateways(None, None), grace=0
        )
        sources = Encapsulation(source4=IPv4Network("10.0.0.1"), source6=IPv6Network("fd00::/64"))
        config = AgentConfig(
            interfaces=("eth0",), encapsulation=sources, state_dir=str(self.folder)
        )
        self.plane = host.DataPlane(settings, self._reached)
        self.control = Control(self.plane, Limits(), lambda: time.time() + self.ahead)
        self.control.applied = self._hear
        self._config = config
        self._open_chronicle()

    def _open_chronicle(self) -> None:
        self.chronicle = Chronicle(self._config, self.plane.publisher.in_force, lambda: None)

    def _hear(self, applied: Applied) -> None:
        self.heard.append(applied)
        self.chronicle.applied(applied)

    def _reached(self, step: Step) -> None:
        """Raises what the kernel would, between the tables and the VIPs' entries."""
        if step is Step.TABLES_SWAPPED and self.refusals:
            self.refusals -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def want(self, contents: Contents, revision: int) -> list[str]:
        """One step to these documents; returns what it refused, as sentences."""
        steering = Steering(revision, "stable", "live")
        self.control.take(View(steering, snapshot(contents, revision)))
        return [rejection.reason for rejection in self.control.step().rejections]

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


@pytest.fixture
def middle(tmp_path: Path) -> Iterator[Middle]:
    built = Middle(tmp_path)
    yield built
    built.close()


def test_what_is_put_back_is_told_like_any_generation(middle: Middle) -> None:
    """The journal can make it again, says why it is there, and goes on from it."""
    assert middle.want(WEB, 1) == []
    good = middle.plane.publisher.in_force
    middle.refusals = 1
    (reason,) = middle.want(MORE, 2)
    back = middle.plane.publisher.in_force
    assert f"generation {back.number} is what was in force before" in reason
    assert (back.digest, back.number) == (good.digest, good.number + 2)
    assert [a.generation.number for a in middle.heard] == [good.number, back.number]
    assert middle.heard[-1].desired == middle.heard[0].desired
    assert middle.want(MORE, 2) == []  # the next attempt has no such failure
    there = middle.journal()
    numbers = [line.number for line in there if isinstance(line, lines.Step)]
    assert numbers == [good.number, back.number, back.number + 1]
    causes = [line.cause for line in there if isinstance(line, lines.Step)]
    assert [cause.kind for cause in causes] == ["keys", "rollback", "keys"]
    assert causes[1].what == "put back, as publishing had failed half way"
    told = [standing.line.digest for standing in replay.standings(there)]
    assert good.digest == back.digest == told[-2]
    assert told[-1] == middle.plane.publisher.in_force.digest


def test_a_step_of_the_clock_counts_once_where_something_is_put_back(middle: Middle) -> None:
    """Windows move with the clock in what is put back, and not again in what follows."""
    middle.want(WEB, 1)
    middle.want(MORE, 2)
    closes = middle.plane.publisher.in_force.pools["web"].table.windows[-1].closes_at
    middle.ahead += 3600
    middle.refusals = 1
    middle.want(WEB | {"pools/web/backends/c": {"address": "198.51.100.3"}}, 3)
    assert middle.heard[-1].stepped == 3600
    middle.want(MORE | {"vips/more": vip(last=3)}, 4)
    assert middle.heard[-1].stepped == 0
    windows = middle.plane.publisher.in_force.pools["web"].table.windows
    assert windows[1].closes_at == closes + 3600
