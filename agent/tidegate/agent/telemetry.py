# SPDX-License-Identifier: Apache-2.0
"""What the agent exports to a collector: its pipeline, and the log as one of its signals.

A record that is logged while a change is under way carries the ids of its trace.
"""

import logging
from collections.abc import Mapping
from typing import Final

from tidegate.agent.config import AgentConfig
from tidegate.event_log import Event
from tidegate.telemetry.current import CURRENT
from tidegate.telemetry.export.pipeline import Pipeline
from tidegate.telemetry.log_format import RepeatFilter
from tidegate.telemetry.names import logs
from tidegate.telemetry.sdk import Identity, Line
from tidegate.telemetry.span import Sink, Value

_LONGEST: Final = 8192
"""Characters of a record, and of a field; a queue of them is bounded memory only if each is."""
_LONGEST_ELEMENT: Final = 64
"""Characters of an element of a list; a list is as long as a text at the most."""


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
        """Return what was not sent, by signal and reason, for the metrics."""
        tallies = self._pipeline.tallies().items()
        return {(signal, why): n for signal, tally in tallies for why, n in tally.lost.items()}

    def close(self) -> None:
        """Send what is left, within the bound that the file sets."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self._pipeline.close()


class _Handler(logging.Handler):
    """Hands log records to the pipeline, which never blocks."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self.addFilter(RepeatFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record over: an event with its fields as attributes."""
        try:
            self._pipeline.write(_line(record))
        except Exception:  # noqa: BLE001 - a record that cannot be formatted must not end the caller
            self.handleError(record)


def _line(record: logging.LogRecord) -> Line:
    attributes: dict[str, Value] = {logs.LOGGER.key: record.name}
    event = record.msg
    if isinstance(event, Event):
        for name, value in event.fields.items():
            if value is not None:
                attributes[logs.field_key(name)] = _bounded(value)
    return Line(
        at=int(record.created * 1e9),
        severity=record.levelno,
        body=record.getMessage()[:_LONGEST],
        attributes=attributes,
        context=CURRENT.get(),
        event=logs.event_name(event.name) if isinstance(event, Event) else None,
    )


def _bounded(value: Value) -> Value:
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, tuple):
        return tuple(each[:_LONGEST_ELEMENT] for each in value[: _LONGEST // _LONGEST_ELEMENT])
    return value
