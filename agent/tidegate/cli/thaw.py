# SPDX-License-Identifier: Apache-2.0
"""`tidegate thaw`: this host follows its keyspace again."""

import argparse
import sys
from typing import TYPE_CHECKING, Final

from tidegate.cli.agent_socket import EXIT_CODES, add_reason, add_socket, order

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_ABOUT: Final = """\
Lifts the freeze that `tidegate freeze` or `tidegate rollback` has put on this host: what is in etcd
comes into force at once. A freeze that stands in etcd holds on, and is named.
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `thaw` to the command line."""
    command = subparsers.add_parser(
        "thaw",
        help="let this host follow its keyspace again",
        description=_ABOUT,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_socket(command)
    add_reason(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    answer = order(options, "/thaw")
    if "error" in answer:
        print(f"tidegate: {answer['error']}", file=sys.stderr)
        return 1
    print("thawed" if answer["was_frozen"] else "it was not frozen from here")
    if answer["frozen"]:
        print(f"another freeze still holds: {answer['frozen']}")
    return 0
