# SPDX-License-Identifier: Apache-2.0
"""What Tidegate logs: events, each with a name and fields.

Every package may use this: it is the standard library's logging with one kind of message. Lines on
stderr are made in telemetry/log_format.py, OpenTelemetry's log records in agent/telemetry.py.

    log = EventLog(__name__)
    log.info("generation", number=7, digest=digest)

A name is a word or several with underscores: people search for it, so it stays when a sentence is
worded anew. A sentence for a person goes into a field, by custom `reason`.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

Value = str | int | float | bool | tuple[str, ...] | None

RESERVED: Final = frozenset(
    ("time", "level", "logger", "event", "message", "exception", "trace_id", "span_id", "left_out")
)
"""What a line has besides the fields of its event; no field is called so."""

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_QUOTED: Final = re.compile(rf'[\s="]|{_CONTROL.pattern}')


class Event(NamedTuple):
    """The message of a log record; as text it is the name and the fields, as in a line."""

    name: str
    fields: Mapping[str, Value]

    def __str__(self) -> str:
        return f"{self.name} {logfmt(self.fields)}".rstrip()


class EventLog:
    """Logs events under the name of a module."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        """Log what only somebody who looks for a fault wants to know."""
        self.log(logging.DEBUG, event, **fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Log what happened as it should."""
        self.log(logging.INFO, event, **fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log what somebody should look at some day."""
        self.log(logging.WARNING, event, **fields)

    def error(self, event: str, /, exc_info: BaseException | None = None, **fields: object) -> None:
        """Log what somebody has to look at; with the traceback of an exception, if one is given."""
        self._log(logging.ERROR, event, fields, exc_info)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def log(self, level: int, event: str, /, **fields: object) -> None:
        """Log an event at a level of logging's."""
        self._log(level, event, fields, None)

    def _log(
        self,
        level: int,
        event: str,
        fields: Mapping[str, object],
        exc_info: BaseException | bool | None,
    ) -> None:
        if self._logger.isEnabledFor(level):
            plain = {name: _plain(value) for name, value in fields.items()}
            self._logger.log(level, Event(event, plain), exc_info=exc_info, stacklevel=4)


def _plain(value: object) -> Value:
    """Return a field's value as it is now; one that is no plain value as its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if not isinstance(value, str) and isinstance(value, (list, tuple, set, frozenset)):
        return tuple(str(each) for each in value)
    return str(value)


def escaped(text: str) -> str:
    """Return the text with what could end a line, or steer a terminal, written out."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def logfmt(fields: Mapping[str, Value]) -> str:
    """Return fields as `name=value name="other value"`; a list as its elements with commas."""
    return " ".join(f"{name}={_logfmt_value(value)}" for name, value in fields.items())


def _logfmt_value(value: Value) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = ",".join(value)
    text = str(value)
    if text and not _QUOTED.search(text):
        return text
    # As Go's logfmt does: a JSON string, so every reader of logfmt can undo it.
    return escaped(json.dumps(text, ensure_ascii=False))
