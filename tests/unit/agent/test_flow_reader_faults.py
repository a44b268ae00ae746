# SPDX-License-Identifier: Apache-2.0
"""The thread that reads flows' events outlives what the system refuses it."""

import logging
import threading
from pathlib import Path
from queue import SimpleQueue

import pytest

from tidegate.agent.traces import flows
from tidegate.model.generation import Generation
from tidegate.telemetry.flows.gate import Limits


class Heard(logging.Handler):
    """Hands on what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: SimpleQueue[str] = SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on."""
        self.lines.put(record.getMessage() + str(record.__dict__))


@pytest.mark.root
def test_an_os_error_does_not_end_the_reader(tmp_path: Path) -> None:
    """An error of open(2) that no one foresaw is named in the log, and reading is tried again."""
    pins = tmp_path / "file" / "pins"
    pins.parent.write_text("no folder")
    heard, logger = Heard(), logging.getLogger(flows.__name__)
    logger.addHandler(heard)
    traces = flows.FlowTraces(pins, Limits(), lambda *_: None, Generation(0, 0, "", {}, {}, {}))
    try:
        traces.start()
        assert "flows_not_traced" in heard.lines.get(timeout=10)
        assert any(t.name == "flow-traces" for t in threading.enumerate())
    finally:
        traces.stop()
        logger.removeHandler(heard)
