# SPDX-License-Identifier: Apache-2.0
"""The lines of the log: one record a line, as logfmt or as JSON, with the ids of the trace.

What a document holds can get into a record. So values are quoted where they must be, control
characters and line ends are escaped, and lines of a traceback are indented: a line that begins with
`time=` is a record of the agent.
"""

import json
import logging
import threading
import time
from datetime import UTC, datetime
from typing import Final, Literal

from tidegate.event_log import Event, Value, escaped, logfmt
from tidegate.telemetry.current import CURRENT

Format = Literal["text", "json"]

PERIOD: Final = 60.0
MOST: Final = 5
"""Records that say the same within PERIOD seconds; the others are counted."""
_REMEMBERED: Final = 1024


class RepeatFilter(logging.Filter):
    """Holds back what says the same again and again; the next that passes says how many."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int, int]] = {}
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        try:
            key = (record.name, record.levelno, record.getMessage())
        except Exception:  # noqa: BLE001 - whoever formats the record says what is wrong with it
            return True
        now = time.monotonic()
        with self._lock:
            began, passed, left_out = self._seen.pop(key, (now, 0, 0))
            if now - began >= PERIOD:
                record.left_out = left_out
                began, passed, left_out = now, 0, 0
            passes = passed < MOST
            self._seen[key] = (began, passed + passes, left_out + (not passes))
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return passes


class Logfmt(logging.Formatter):
    """time=… level=… logger=… event=… and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, and below it the indented lines of a traceback."""
        fields = _head(record)
        if isinstance(event := record.msg, Event):
            fields |= {"event": event.name, **event.fields}
        else:
            fields["message"] = record.getMessage()
        line = logfmt(fields | _more(record))
        if not record.exc_info:
            return line
        traceback = self.formatException(record.exc_info).split("\n")
        return "\n  ".join((line, *map(escaped, traceback)))


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return all of the record, its traceback too."""
        fields = _head(record)
        if isinstance(event := record.msg, Event):
            fields |= {"event": event.name, **event.fields}
        fields |= {"message": record.getMessage(), **_more(record)}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _head(record: logging.LogRecord) -> dict[str, Value]:
    """Return what every line begins with; its time is ISO 8601 in UTC."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname,
        "logger": record.name,
    }


def _more(record: logging.LogRecord) -> dict[str, Value]:
    """Return ids of the trace under way, and how many records like this one were left out."""
    context = CURRENT.get()
    more: dict[str, Value] = {}
    if context is not None:
        more["trace_id"], more["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    left_out: int = getattr(record, "left_out", 0)
    return more | {"left_out": left_out} if left_out else more


def use(form: Format) -> None:
    """Write what goes to stderr in this form from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, (Logfmt, Json)):
            handler.setFormatter(Json() if form == "json" else Logfmt())
