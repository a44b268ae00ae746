# SPDX-License-Identifier: Apache-2.0
"""The log on stderr: one record a line, as key=value or as JSON, with the ids of the trace.

What a document holds can get into a message. So control characters and line ends are escaped, and
lines of a traceback are indented: a line that begins with `time=` is a record of the agent.
"""

import json
import logging
import re
import sys
import threading
import time
from typing import Final, Literal

from tidegate.telemetry.current import CURRENT

Format = Literal["text", "json"]

PERIOD: Final = 60.0
MOST: Final = 5
"""Records that say the same within PERIOD seconds; the others are counted."""
_REMEMBERED: Final = 1024
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def escaped(text: str) -> str:
    """The text with what could end a line, or steer a terminal, written out."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class Repeats(logging.Filter):
    """Holds back what says the same again and again; the next that is told says how many."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int, int]] = {}
        self._lock = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is told."""
        key = (record.name, record.levelno, record.getMessage())
        now = time.monotonic()
        with self._lock:
            began, told, left_out = self._seen.pop(key, (now, 0, 0))
            if now - began >= PERIOD:
                record.left_out = left_out
                began, told, left_out = now, 0, 0
            is_told = told < MOST
            self._seen[key] = (began, told + is_told, left_out + (not is_told))
            if len(self._seen) > _REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return is_told


class KeyValue(logging.Formatter):
    """time=… level=… logger=… message."""

    def __init__(self) -> None:
        super().__init__("time=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it the indented lines of a traceback."""
        return super().format(record).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record without its traceback."""
        more = "".join(f" {key}={value}" for key, value in _more(record).items())
        return escaped(super().formatMessage(record)) + more


class Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """All of the record, its traceback too."""
        fields: dict[str, str | int] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_more(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def _more(record: logging.LogRecord) -> dict[str, str | int]:
    """Ids of the trace that is under way, and how many records like this one were left out."""
    context = CURRENT.get()
    more: dict[str, str | int] = {}
    if context is not None:
        more["trace_id"], more["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    left_out: int = getattr(record, "left_out", 0)
    return more | {"left_out": left_out} if left_out else more


def set_up() -> None:
    """Makes stderr the log's place, until `use` says otherwise as key=value."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Repeats())
    handler.setFormatter(KeyValue())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def use(form: Format) -> None:
    """Writes what goes to stderr in this form from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, (KeyValue, Json)):
            handler.setFormatter(Json() if form == "json" else KeyValue())
