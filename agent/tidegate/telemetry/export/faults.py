# SPDX-License-Identifier: Apache-2.0
"""Why telemetry does not arrive, said once and in words that an operator can act on.

OpenTelemetry's exporters answer with success or failure alone; the reason they give to a logger,
with each attempt, in the words of gRPC or of a Python exception. So what they log while one of our
threads exports is kept from the agent's own log and read for the reason.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidegate.event_log import EventLog
from tidegate.telemetry.export.settings import Signal

log = EventLog(__name__)

REPEAT_SECONDS: Final = 300.0
"""A fault that lasts is logged again after this time."""
_LONGEST: Final = 300
_MEANINGS: Final = (
    ("DNS resolution failed", "the name does not resolve"),
    ("Name or service not known", "the name does not resolve"),
    ("No address associated", "the name does not resolve"),
    ("failure in name resolution", "the name does not resolve"),
    ("NameResolutionError", "the name does not resolve"),
    ("Domain name not found", "the name does not resolve"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not one that telemetry.ca vouches for"),
    ("IP address mismatch", "its certificate is for another name"),
    ("doesn't match", "its certificate is for another name"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: write the endpoint as http://…"),
    ("CERTIFICATE_REQUIRED", "it wants a certificate of this host: telemetry.cert"),
    ("BadStatusLine", "it does not speak HTTP/1: check protocol"),
    ("SSL", "TLS failed"),
    ("handshake", "TLS failed"),
    ("Connection refused", "the connection is refused: nothing listens there"),
    ("No route to host", "there is no route to it"),
    ("Network is unreachable", "there is no route to it"),
    ("UNIMPLEMENTED", "it has no such OTLP service: check endpoint and protocol"),
    ("code: 404", "it has no such OTLP path: check endpoint and protocol"),
    ("code: 405", "it takes no OTLP there: check endpoint and protocol"),
    ("UNAUTHENTICATED", "it wants other credentials: telemetry.headers_file"),
    ("PERMISSION_DENIED", "it wants other credentials: telemetry.headers_file"),
    ("code: 401", "it wants other credentials: telemetry.headers_file"),
    ("code: 403", "it wants other credentials: telemetry.headers_file"),
    ("Trying to connect an http1.x server", "it speaks HTTP/1, not gRPC: check protocol"),
    ("RemoteDisconnected", "it closes the connection: check protocol"),
    ("Connection aborted", "it closes the connection: check protocol"),
    ("Failed parsing HTTP/2", "it does not speak gRPC: check protocol"),
    ("code: 503", "it is busy"),
    ("RESOURCE_EXHAUSTED", "it is busy"),
    ("settings frame", "it does not speak gRPC: check protocol"),
    ("Socket closed", "it closes the connection: check protocol"),
    ("DEADLINE_EXCEEDED", "it does not answer in time"),
    ("timed out", "it does not answer in time"),
)
"""What the exporters' words mean, more special ones first."""


class _Heard(threading.local):
    lines: list[str] | None = None


_heard = _Heard()


class _Listener(logging.Handler):
    """Takes what OpenTelemetry logs: keeps it while this thread exports, else logs it as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        if _heard.lines is None:
            log.log(record.levelno, "opentelemetry", reason=record.getMessage())
        else:
            _heard.lines.append(record.getMessage())


def listen() -> None:
    """Take OpenTelemetry's log over, once in a process."""
    logger = logging.getLogger("opentelemetry")
    if not any(isinstance(handler, _Listener) for handler in logger.handlers):
        logger.addHandler(_Listener(logging.WARNING))
        logger.propagate = False
        logging.getLogger("urllib3").setLevel(logging.WARNING)


def unmute() -> None:
    """Remove the exporters' own filters of what repeats, once they are imported.

    They leave a reason out that was logged within the last 20 seconds; logging it once is our part.
    """
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("opentelemetry.exporter.") and isinstance(logger, logging.Logger):
            logger.filters.clear()


def note(line: str) -> None:
    """Add a reason that the exporter does not log to the export on this thread."""
    if _heard.lines is not None:
        _heard.lines.append(line)


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what the exporters log on this thread meanwhile."""
    before, _heard.lines = _heard.lines, []
    try:
        yield _heard.lines
    finally:
        _heard.lines = before


def explain(lines: list[str]) -> str:
    """Return the reason of a failed export, from what the exporter said on the way."""
    for words, meaning in _MEANINGS:
        said = next((line for line in lines if words in line), None)
        if said is not None:
            return f"{meaning} ({' '.join(said.split())[:_LONGEST]})"
    return " ".join(lines[0].split())[:_LONGEST] if lines else "it does not say why"


class Faults:
    """What is wrong now, per signal. Thread-safe; `problems` is for the status."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()
        self._reasons: dict[Signal, str] = {}
        self._logged: dict[str, float] = {}

    def failed(self, signal: Signal, reason: str) -> None:
        """Note that an export failed; log it unless it was logged lately."""
        meaning = reason.split(" (", maxsplit=1)[0]
        now = time.monotonic()
        with self._lock:
            self._reasons[signal] = meaning
            is_new = now - self._logged.get(meaning, -REPEAT_SECONDS) >= REPEAT_SECONDS
            if is_new:
                self._logged[meaning] = now
        if is_new:
            log.warning("telemetry_away", endpoint=self._endpoint, reason=reason)

    def worked(self, signal: Signal) -> None:
        """Note that an export arrived; log the first one after a failure of this signal."""
        if signal not in self._reasons:
            return
        with self._lock:
            was = self._reasons.pop(signal, None)
            if not self._reasons:
                self._logged.clear()
        if was is not None:
            log.info("telemetry_back", endpoint=self._endpoint, signal=signal)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for each reason that holds now."""
        with self._lock:
            reasons = dict(self._reasons)
        signals = {
            reason: sorted(signal for signal in reasons if reasons[signal] == reason)
            for reason in sorted(set(reasons.values()))
        }
        return tuple(
            f"Telemetry ({', '.join(names)}) does not reach {self._endpoint}: {reason}."
            for reason, names in signals.items()
        )
