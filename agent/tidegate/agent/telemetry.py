# SPDX-License-Identifier: Apache-2.0
"""The agent's way out to a collector: its pipeline, and the log as one of the things that go there.

A record that is logged while a change is under way carries the ids of its trace.
"""

import logging
from collections.abc import Mapping
from typing import Final

from tidegate.agent.config import AgentConfig
from tidegate.telemetry.current import CURRENT
from tidegate.telemetry.export.pipeline import Pipeline
from tidegate.telemetry.log_format import Repeats
from tidegate.telemetry.names.logs import LOGGER
from tidegate.telemetry.sdk import Identity, Line
from tidegate.telemetry.span import Sink

_LONGEST: Final = 8192
"""Characters of a record; a queue of them is bounded memory only if each is."""


class Telemetry:
    """From the agent's start to its stop."""

    def __init__(self, config: AgentConfig) -> None:
        self._pipeline = Pipeline(config.telemetry, Identity(config.fleet, config.host))
        self._handler = _Handler(self._pipeline) if self._pipeline.takes_lines else None
        if self._handler is not None:
            logging.getLogger().addHandler(self._handler)

    @property
    def pipeline(self) -> Pipeline:
        """Sends what is collected elsewhere: metrics."""
        return self._pipeline

    @property
    def sink(self) -> Sink | None:
        """Takes spans; None where none are sent."""
        return self._pipeline.sink

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong now, for the status."""
        return self._pipeline.faults.problems

    def losses(self) -> Mapping[tuple[str, str], int]:
        """What was not sent, by signal and reason, for the metrics."""
        tallies = self._pipeline.tallies().items()
        return {(signal, why): n for signal, tally in tallies for why, n in tally.lost.items()}

    def close(self) -> None:
        """Sends what is left, within the bound that the file sets."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self._pipeline.close()


class _Handler(logging.Handler):
    """Hands log records to the pipeline, which never blocks."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.addFilter(Repeats())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._pipeline.write(
                Line(
                    int(record.created * 1e9),
                    record.levelno,
                    record.getMessage()[:_LONGEST],
                    {LOGGER.key: record.name},
                    CURRENT.get(),
                )
            )
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end the caller
            self.handleError(record)
