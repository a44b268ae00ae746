# SPDX-License-Identifier: Apache-2.0
"""Carries out an operator's orders: rollback, freeze, thaw. Called by the loop, between changes.

Going back is not a swap to the old tables, though they may still be loaded. Flows that were born
under the newer generation, in slots that it had changed, are known to the connection table, or to
nobody in slots that it had not; the old table has no mark that says where to look, and its
fallbacks are those of another time. With it such flows of a serving backend would move. So the old
documents are planned anew, from what is in force: the next number, the old digest, and exact marks
and fallbacks. What is published is the same exchange of pointers, after tables that are filled and
checked beside those in force.

The freeze comes before the documents, and is written beside the tables before it is answered. An
agent that dies in between starts frozen, on what was in force.
"""

import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from tidegate.agent.operator.orders import Freeze, Order, Rollback, Signature, Thaw, refused
from tidegate.agent.reconciler import Control
from tidegate.agent.rollback_states import Past, State
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import DataplaneError, FenceError
from tidegate.http_server import Answer

log = logging.getLogger(__name__)

OPERATOR: Final = "operator"
"""Whose freeze it is, among those that `Control` keeps apart."""

Noted = Callable[[str, Signature], None]


class Operator:
    """What the operators of this host have ordered.

    Args:
        publisher: it keeps the order to freeze beside the tables, so that a restart finds it.
        noted: hears of each freeze and thaw.
    """

    def __init__(
        self, control: Control, publisher: Publisher, past: Past, noted: Noted = lambda *_: None
    ) -> None:
        self._control = control
        self._publisher = publisher
        self._past = past
        self._noted = noted
        control.freeze(OPERATOR, publisher.hold)

    def carry_out(self, order: Order) -> Answer:
        """Does it, and says what came of it."""
        try:
            match order:
                case Rollback(signature, to):
                    return self._roll_back(signature, to)
                case Freeze(signature):
                    return self._freeze(signature)
                case Thaw(signature):
                    return self._thaw(signature)
        except (DataplaneError, FenceError) as error:
            log.warning("order refused: %s", error)
            return refused(str(error), HTTPStatus.INTERNAL_SERVER_ERROR)

    def _roll_back(self, signature: Signature, to: int | None) -> Answer:
        target = self._past.before() if to is None else self._past.find(to)
        if target is None:
            what = "before the one in force" if to is None else f"number {to}"
            return refused(
                f"no generation {what} is known; known are: {self._past.listed()}",
                HTTPStatus.NOT_FOUND,
            )
        before = self._publisher.hold
        self._hold(f"rolled back to generation {target.last} {signature}")
        failures = self._control.put_back(
            target.desired, f"to generation {target.last} {signature}"
        )
        if failures:
            self._hold(before)
            return refused(failures[0].reason, HTTPStatus.INTERNAL_SERVER_ERROR)
        return Answer(HTTPStatus.OK, self._told(target))

    def _told(self, target: State) -> dict[str, object]:
        in_force = self._publisher.in_force
        log.warning(
            "rollback to=%d generation=%d digest=%s", target.last, in_force.number, in_force.digest
        )
        return {
            "rolled_back_to": target.last,
            "generation": in_force.number,
            "digest": in_force.digest,
            "digest_then": target.digest,
            "frozen": self._control.frozen,
        }

    def _freeze(self, signature: Signature) -> Answer:
        self._hold(f"frozen {signature}")
        self._noted("freeze", signature)
        return self._how_it_stands()

    def _thaw(self, signature: Signature) -> Answer:
        was = self._publisher.hold
        self._hold("")
        if was:
            self._noted("thaw", signature)
        return self._how_it_stands(was_frozen=bool(was))

    def _how_it_stands(self, **more: object) -> Answer:
        generation = self._publisher.in_force.number
        value = {"generation": generation, "frozen": self._control.frozen, **more}
        return Answer(HTTPStatus.OK, value)

    def _hold(self, reason: str) -> None:
        self._publisher.keep_hold(reason)
        self._control.freeze(OPERATOR, reason)
        log.warning("freeze reason=%s", reason or "none")
