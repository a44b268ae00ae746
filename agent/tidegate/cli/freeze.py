# SPDX-License-Identifier: Apache-2.0
"""`tidegate freeze`: this host keeps what is in force, until `tidegate thaw`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.agent_orders import add_order

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction

_ABOUT: Final = """\
Keep this host's generation in force, whatever is written to etcd, until `tidegate thaw`. A freeze
outlasts restarts of the agent, and works while etcd is down. What time alone changes goes on:
windows close, drains end, weights ramp. To freeze from etcd, a whole fleet too, see
docs/keyspace.md.
"""
_EXAMPLES: Final = """\
  tidegate freeze --reason "replacing its switch"
  tidegate thaw
"""


def register(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `freeze` to the command line."""
    add_order(
        subparsers,
        "freeze",
        _lines,
        summary="keep what is in force on this host",
        about=_ABOUT,
        examples=_EXAMPLES,
    )


def _lines(answer: dict[str, Any]) -> Iterator[str]:
    yield f"generation {answer['generation']} stays: {answer['frozen']}"
