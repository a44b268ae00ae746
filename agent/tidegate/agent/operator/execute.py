# SPDX-License-Identifier: Apache-2.0
"""Carries out an operator's orders: rollback, freeze, thaw. Called between two changes.

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

from http import HTTPStatus
from typing import Final, Literal, NamedTuple

from tidegate.agent.dead_man import DEAD_MAN
from tidegate.agent.operator.orders import Freeze, Order, Rollback, Signature, Thaw, refused
from tidegate.agent.outcome import Applied
from tidegate.agent.reconciler import Reconciler
from tidegate.agent.rollback_states import RollbackStates, State
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.errors import DataplaneError, FenceError
from tidegate.event_log import EventLog
from tidegate.http_server import Answer

log = EventLog(__name__)

OPERATOR: Final = "operator"
"""Whose freeze it is, among those that the reconciler keeps apart."""


class Done(NamedTuple):
    """What came of an order.

    Attributes:
        answer: to the operator.
        applied: what came into force, in this order.
        noted: what the journal has to note of it besides; empty if nothing.
    """

    answer: Answer
    applied: tuple[Applied, ...] = ()
    noted: Literal["", "freeze", "thaw"] = ""


class Operator:
    """Carries out what the operators of this host order.

    Args:
        reconciler: carries out what changes the data plane.
        publisher: it keeps the order to freeze beside the tables, so that a restart finds it.
        states: what can be gone back to.
    """

    def __init__(
        self, reconciler: Reconciler, publisher: Publisher, states: RollbackStates
    ) -> None:
        self._reconciler = reconciler
        self._publisher = publisher
        self._states = states
        reconciler.freeze(OPERATOR, publisher.hold)

    def carry_out(self, order: Order) -> Done:
        """Carry out an order."""
        try:
            match order:
                case Rollback(signature, to):
                    return self._roll_back(signature, to)
                case Freeze(signature):
                    return self._freeze(signature)
                case Thaw():
                    return self._thaw()
        except (DataplaneError, FenceError) as error:
            log.warning("order_refused", order=type(order).__name__.lower(), reason=error)
            return Done(refused(str(error), HTTPStatus.INTERNAL_SERVER_ERROR))
        except Exception as error:
            log.exception("order_failed", order=type(order).__name__.lower())
            sentence = f"an error in the agent, {type(error).__name__}: {error}"
            return Done(refused(sentence, HTTPStatus.INTERNAL_SERVER_ERROR))

    def _roll_back(self, signature: Signature, to: int | None) -> Done:
        target = self._states.before() if to is None else self._states.find(to)
        if target is None:
            what = "before the one in force" if to is None else f"number {to}"
            sentence = f"no generation {what} is known; known are: {self._states.listed()}"
            return Done(refused(sentence, HTTPStatus.NOT_FOUND))
        before = self._publisher.hold
        self._hold(f"rolled back to generation {target.last} {signature}")
        outcome = self._reconciler.restore(
            target.desired, f"to generation {target.last} {signature}"
        )
        if outcome.rejections:
            self._hold(before)
            reason = outcome.rejections[0].reason
            return Done(refused(reason, HTTPStatus.INTERNAL_SERVER_ERROR), outcome.applied)
        return Done(Answer(HTTPStatus.OK, self._rolled_back(target)), outcome.applied)

    def _rolled_back(self, target: State) -> dict[str, object]:
        in_force = self._publisher.in_force
        log.warning("rollback", to=target.last, generation=in_force.number, digest=in_force.digest)
        return {
            "rolled_back_to": target.last,
            "generation": in_force.number,
            "digest": in_force.digest,
            "digest_then": target.digest,
            "frozen": self._reconciler.frozen,
        }

    def _freeze(self, signature: Signature) -> Done:
        self._hold(f"frozen {signature}")
        return Done(self._standing(), noted="freeze")

    def _thaw(self) -> Done:
        was = self._publisher.hold or self._reconciler.is_frozen_by(DEAD_MAN)
        self._reconciler.freeze(DEAD_MAN, "")
        self._hold("")
        return Done(self._standing(was_frozen=bool(was)), noted="thaw" if was else "")

    def _standing(self, **more: object) -> Answer:
        generation = self._publisher.in_force.number
        value = {"generation": generation, "frozen": self._reconciler.frozen, **more}
        return Answer(HTTPStatus.OK, value)

    def _hold(self, reason: str) -> None:
        self._publisher.keep_hold(reason)
        self._reconciler.freeze(OPERATOR, reason)
        if reason:
            log.warning("frozen", by=OPERATOR, reason=reason)
        else:
            log.warning("thawed", by=OPERATOR)
