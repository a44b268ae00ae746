# SPDX-License-Identifier: Apache-2.0
"""A host whose state cannot be reported: nothing says that it is well, and its agent goes on."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tidegate.agent.beside import RETRY_SECONDS, Beside
from tidegate.agent.config import AgentConfig
from tidegate.agent.pulse import Pulse
from tidegate.agent.readiness.signals import ReadySignals
from tidegate.agent.reporter import Reporter

CONFIG = cast("AgentConfig", None)


class Host(Reporter):
    """Shows readiness in a file, and then fails as long as it is told to."""

    def __init__(self, file: Path, pulse: Pulse, beside: Beside) -> None:
        self._parts = cast("Any", SimpleNamespace(pulse=pulse))
        self._beside = beside
        self._signals = ReadySignals(str(file))
        self.error: Exception | None = None

    def _report(self, config: AgentConfig, *, is_stopping: bool) -> None:
        del config, is_stopping
        self._signals.show(self._parts.pulse.fault, 1)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_failing_report_withdraws_readiness(tmp_path: Path, error: Exception) -> None:
    """At once and for as long as it fails; the lease is not renewed; then all of it is back."""
    now, file = [100.0], tmp_path / "ready"
    pulse, beside = Pulse(10, clock=lambda: now[0]), Beside(lambda: now[0])
    host = Host(file, pulse, beside)
    host.report(CONFIG, is_stopping=False)
    assert file.exists()
    assert pulse.hang() == ""
    host.error = error
    for _ in range(4):
        host.report(CONFIG, is_stopping=False)
        pulse.beat()
        assert not file.exists()
        assert type(error).__name__ in pulse.hang()
        now[0] += RETRY_SECONDS
    host.error = None
    host.report(CONFIG, is_stopping=False)
    assert file.exists()
    assert pulse.hang() == ""
