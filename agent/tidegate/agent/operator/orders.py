# SPDX-License-Identifier: Apache-2.0
"""What an operator can order an agent to do, as values that travel from the socket to the loop.

The client's thread posts an order and waits for its answer; the loop carries orders out between two
changes, in the order in which they came. An order whose client has given up is not begun.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from tidegate.http_server import Answer
from tidegate.keyspace.status.document import rfc3339
from tidegate.model.steering import Reason

Text = Annotated[str, Meta(max_length=100)]


class Body(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every order may say: why, and for whom the socket's user speaks."""

    reason: Reason = ""
    on_behalf_of: Text = ""


class RollbackBody(Body, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /rollback: the generation to go back to; null is the one before."""

    to: Annotated[int, Meta(ge=1)] | None = None


@dataclass(frozen=True)
class Signature:
    """Who ordered something, when (wall clock, s) and why."""

    user: str
    at: float
    reason: str = ""

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"by {self.user} at {rfc3339(self.at)}{why}"


@dataclass(frozen=True)
class Rollback:
    """Put a generation's documents back, and freeze."""

    signature: Signature
    to: int | None


@dataclass(frozen=True)
class Freeze:
    """Keep what is in force until further notice."""

    signature: Signature


@dataclass(frozen=True)
class Thaw:
    """Follow the keyspace again."""

    signature: Signature


Order: TypeAlias = Rollback | Freeze | Thaw


@dataclass(frozen=True)
class Posted:
    """An order on its way, and where its answer goes."""

    order: Order
    answer: "Future[Answer]" = field(default_factory=Future)


def refused(sentence: str, status: HTTPStatus = HTTPStatus.CONFLICT) -> Answer:
    """Return the answer to an order that cannot be carried out, which says why."""
    return Answer(status, {"error": sentence})
