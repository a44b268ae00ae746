# SPDX-License-Identifier: Apache-2.0
"""`tidegate rollback`: this host goes back to an earlier generation, and stays there."""

import argparse
import sys
from typing import TYPE_CHECKING, Final

from tidegate.cli.agent_socket import EXIT_CODES, add_reason, add_socket, order

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_ABOUT: Final = """\
Puts the documents of an earlier generation back in force on this host, and freezes it, so that the
next change in etcd does not undo it: it stays until `tidegate thaw`. Works with etcd away. No flow
of a serving backend moves. An explicit order: guards do not hold it up. A second rollback goes back
to where the first one came from.
"""
_EPILOG: Final = f"""\
{EXIT_CODES}

examples:
  tidegate rollback --reason "incident 4711"
  tidegate rollback --to 17
  tidegate rollback -c /etc/tidegate/agent.toml
  curl --unix-socket /run/tidegate/agent.sock http://localhost/states
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `rollback` to the command line."""
    command = subparsers.add_parser(
        "rollback",
        help="put an earlier generation of this host back, and freeze",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_socket(command)
    command.add_argument(
        "--to", type=int, metavar="N", help="generation to go back to (default: the one before)"
    )
    add_reason(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    answer = order(options, "/rollback", to=options.to)
    if "error" in answer:
        print(f"tidegate: {answer['error']}", file=sys.stderr)
        return 1
    print(
        f"generation {answer['generation']} is in force, with the documents of generation "
        f"{answer['rolled_back_to']} (digest {answer['digest']})"
    )
    print("frozen until `tidegate thaw`")
    return 0
