# SPDX-License-Identifier: Apache-2.0
"""Which VIPs are announced to routers, and until when.

A host that is ready announces the VIPs of the generation in force. One that is not keeps them for
`hold` seconds, so that a neighbour entry that is renewed moves no traffic; this holds for a start
too, so an agent that comes back at once finds its routes as they were. When it is asked to end it
withdraws first.
"""

from typing import Final

from tidegate.agent.config import AnnounceTable
from tidegate.agent.readiness.exabgp import ExaBgpPipe
from tidegate.dataplane.announced_routes import keep_routes
from tidegate.errors import DataplaneError
from tidegate.event_log import EventLog
from tidegate.model.generation import Generation
from tidegate.model.values import Network

log = EventLog(__name__)

AGAIN_SECONDS: Final = 15.0
"""Routes that another process removed are added again after this long at most."""
RETRY_SECONDS: Final = 1.0
"""A reader that comes back to the pipe gets the routes after this long at most."""


class Announcer:
    """Keeps the routing table and the pipe up to date.

    Args:
        settings: of the agent's file.
        now: monotonic clock, s.
    """

    def __init__(self, settings: AnnounceTable, now: float) -> None:
        self._settings = settings
        self._pipe = ExaBgpPipe(settings.exabgp_pipe) if settings.exabgp_pipe else None
        self._unready_since: float | None = now
        self._wanted: frozenset[Network] | None = None
        self._due = now
        self._piped: frozenset[Network] | None = None
        self._pipe_due = now
        self._fault = ""
        self._next: float | None = None

    @property
    def is_on(self) -> bool:
        """Whether anything is announced at all."""
        return bool(self._settings.table) or self._pipe is not None

    @property
    def drain_seconds(self) -> float | None:
        """For how long the agent goes on when it is asked to end; None if it withdraws nothing."""
        return self._settings.drain if self.is_on and self._settings.withdraw_on_stop else None

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps it from announcing, as sentences."""
        return tuple(filter(None, (self._fault, self._pipe.problem if self._pipe else "")))

    def next_due(self) -> float | None:
        """Return the monotonic second at which time alone asks for an update, or None."""
        return self._next

    def update(
        self, generation: Generation, *, is_ready: bool, is_stopping: bool, now: float
    ) -> None:
        """Announce or withdraw what readiness and time ask for."""
        if not self.is_on:
            return
        # From when it was found to be not ready, not from the update before.
        since = now if self._unready_since is None else self._unready_since
        self._unready_since = None if is_ready else since
        ends = since + self._settings.hold
        if is_stopping or (not is_ready and now >= ends):
            self._bring(frozenset(), now)
        elif is_ready:
            self._bring(frozenset(each.vip.network for each in generation.vips.values()), now)
        moments = [self._due] if self._settings.table else []
        moments += [self._pipe_due] if self._pipe is not None else []
        self._next = min(moments) if is_ready or is_stopping or now >= ends else ends

    def _bring(self, wanted: frozenset[Network], now: float) -> None:
        if self._pipe is not None:
            self._write_pipe(self._pipe, wanted, now)
        if not self._settings.table or (wanted == self._wanted and now < self._due):
            return
        self._wanted, self._due = wanted, now + AGAIN_SECONDS
        try:
            added, removed = keep_routes(self._settings.table, wanted)
        except DataplaneError as error:
            if str(error) != self._fault:
                log.error("announce_failed", reason=error)
            self._fault = str(error)
            return
        self._fault = ""
        if added or removed:
            log.info("announce", added=added, removed=removed, routes=len(wanted))

    def _write_pipe(self, pipe: ExaBgpPipe, wanted: frozenset[Network], now: float) -> None:
        if wanted == self._piped and now < self._pipe_due and not pipe.has_lost_reader():
            return
        pipe.keep(wanted)
        self._piped = wanted
        self._pipe_due = now + (RETRY_SECONDS if pipe.problem else AGAIN_SECONDS)
