# SPDX-License-Identifier: Apache-2.0
"""`tidegate rollback`: this host goes back to an earlier generation, and stays there."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.agent_orders import add_order

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

_ABOUT: Final = """\
Put the documents of an earlier generation back in force on this host, and freeze it, so that the
next change in etcd does not undo that: it stays until `tidegate thaw`. Works while etcd is down. No
flow of a serving backend moves. Guards do not apply, since the order is explicit. A second rollback
returns to where the first one came from.
"""
_EXAMPLES: Final = """\
  tidegate rollback --reason "incident 4711"
  tidegate rollback --to 17
  tidegate rollback -c /etc/tidegate/agent.toml
  curl --unix-socket /run/tidegate/agent.sock http://localhost/states
"""


def register(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `rollback` to the command line."""
    command = add_order(
        subparsers,
        "rollback",
        _lines,
        summary="put an earlier generation of this host back, and freeze",
        about=_ABOUT,
        examples=_EXAMPLES,
    )
    command.add_argument(
        "--to", type=int, metavar="N", help="generation to go back to (default: the one before)"
    )


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    yield (
        f"generation {answer['generation']} is in force, with the documents of generation "
        f"{answer['rolled_back_to']} (digest {answer['digest']})"
    )
    yield "frozen until `tidegate thaw`"
