# SPDX-License-Identifier: Apache-2.0
"""The paths of the control socket: what each one asks or orders.

    GET  /status    the status document, as in etcd, from the last turn of the loop
    GET  /ready     200 if the host is ready, else 503; docs/announce.md
    GET  /metrics   metrics as Prometheus' text, read when asked for
    GET  /states    the generations that can be rolled back to
    POST /rollback  {"to": N | null, "reason": "", "on_behalf_of": ""}
    POST /freeze    {"reason": "", "on_behalf_of": ""}
    POST /thaw      the same

Orders go through the mailbox to the loop, which alone changes the data plane. Questions are
answered here, from values that the loop has left.
"""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from tidegate.agent.operator.orders import (
    Body,
    Freeze,
    Order,
    Posted,
    Rollback,
    RollbackBody,
    Signature,
    Thaw,
    refused,
)
from tidegate.agent.rollback_states import RollbackStates, State
from tidegate.errors import DataplaneError
from tidegate.http_server import Answer, Request, Routes
from tidegate.keyspace.status.document import StatusDocument, encode
from tidegate.telemetry.metrics.exposition import CONTENT_TYPE

ANSWER_SECONDS: Final = 30.0
"""A client waits this long for the loop, which may be publishing a large change."""

_Body = TypeVar("_Body", bound=Body)


class OperatorRoutes:
    """Hands orders to the loop, and shows what the loop has left.

    Args:
        post: hands an order to the loop; False if too many wait there.
        states: what can be rolled back to; read only.
        metrics: makes Prometheus' text.
        hang: why what the loop has left is out of date; empty if it is not.
    """

    def __init__(
        self,
        post: Callable[[Posted], bool],
        states: RollbackStates,
        metrics: Callable[[], bytes],
        hang: Callable[[], str] = lambda: "",
    ) -> None:
        self._post = post
        self._states_known = states
        self._text = metrics
        self._hang = hang
        self.status: StatusDocument | None = None

    def routes(self) -> Routes:
        """Return the routes of the control socket."""
        return {
            ("GET", "/status"): self._status,
            ("GET", "/ready"): self._ready,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/states"): self._states,
            ("POST", "/rollback"): self._rollback,
            ("POST", "/freeze"): lambda request: self._plain(request, Freeze),
            ("POST", "/thaw"): lambda request: self._plain(request, Thaw),
        }

    def _status(self, _: Request) -> Answer:
        status = self._current()
        if status is None:
            return refused("the agent is starting", HTTPStatus.SERVICE_UNAVAILABLE)
        return Answer(HTTPStatus.OK, encode(status) + b"\n")

    def _ready(self, _: Request) -> Answer:
        status = self._current()
        if status is None:
            return refused("the agent is starting", HTTPStatus.SERVICE_UNAVAILABLE)
        code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(code, {"ready": status.ready, "reason": status.ready_reason})

    def _current(self) -> StatusDocument | None:
        """Return the status from the last turn of the loop, which may be the last one for ever."""
        hang = self._hang()
        if self.status is None or not hang:
            return self.status
        return msgspec.structs.replace(
            self.status, state="degraded", reason=hang, ready=False, ready_reason=hang
        )

    def _metrics(self, _: Request) -> Answer:
        try:
            return Answer(HTTPStatus.OK, self._text(), CONTENT_TYPE)
        except DataplaneError as error:
            return refused(str(error), HTTPStatus.SERVICE_UNAVAILABLE)

    def _states(self, _: Request) -> Answer:
        return Answer(HTTPStatus.OK, {"states": [described(s) for s in self._states_known.states]})

    def _rollback(self, request: Request) -> Answer:
        body = _read(request, RollbackBody)
        if isinstance(body, Answer):
            return body
        return self._carry_out(Rollback(_signed(request, body), body.to))

    def _plain(self, request: Request, kind: type[Freeze | Thaw]) -> Answer:
        body = _read(request, Body)
        if isinstance(body, Answer):
            return body
        return self._carry_out(kind(_signed(request, body)))

    def _carry_out(self, order: Order) -> Answer:
        posted = Posted(order)
        if not self._post(posted):
            return refused("too many orders are waiting", HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            return posted.answer.result(ANSWER_SECONDS)
        except TimeoutError:
            if posted.answer.cancel():
                sentence = f"the agent was busy for {ANSWER_SECONDS:g} s; nothing was done"
                return refused(sentence, HTTPStatus.SERVICE_UNAVAILABLE)
            sentence = "the order is still running; see the agent's status"
            return refused(sentence, HTTPStatus.GATEWAY_TIMEOUT)
        except CancelledError:
            return refused("the agent stops; nothing was done", HTTPStatus.SERVICE_UNAVAILABLE)


def described(state: State) -> dict[str, int | str]:
    """Return a state that can be rolled back to, as JSON."""
    return {
        "first": state.first,
        "last": state.last,
        "revision": state.desired.revision,
        "digest": state.digest,
    }


def _read(request: Request, kind: type[_Body]) -> _Body | Answer:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        return refused(f"the body is not understood: {error}", HTTPStatus.BAD_REQUEST)


def _signed(request: Request, body: Body) -> Signature:
    user = f"{request.user} for {body.on_behalf_of}" if body.on_behalf_of else request.user
    return Signature(user, time.time(), body.reason)
