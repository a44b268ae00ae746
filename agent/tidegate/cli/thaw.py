# SPDX-License-Identifier: Apache-2.0
"""`tidegate thaw`: this host follows its keyspace again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.agent_orders import add_order

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

_ABOUT: Final = """\
Lift the freeze that `tidegate freeze` or `tidegate rollback` has put on this host: what is in etcd
comes into force at once. A freeze that stands in etcd stays, and is named.
"""


def register(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `thaw` to the command line."""
    add_order(
        subparsers,
        "thaw",
        _lines,
        summary="let this host follow its keyspace again",
        about=_ABOUT,
    )


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    yield "thawed" if answer["was_frozen"] else "was not frozen by an order on this host"
    if answer["frozen"]:
        yield f"another freeze is still in force: {answer['frozen']}"
