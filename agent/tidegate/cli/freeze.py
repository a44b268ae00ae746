# SPDX-License-Identifier: Apache-2.0
"""`tidegate freeze`: this host keeps what is in force, until `tidegate thaw`."""

import argparse
import sys
from typing import TYPE_CHECKING, Final

from tidegate.cli.agent_socket import EXIT_CODES, add_reason, add_socket, order

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_ABOUT: Final = """\
Keeps this host's generation in force, whatever is written to etcd, until `tidegate thaw`. It lasts
over restarts of the agent, and works with etcd away. What time alone changes goes on: windows
close, drains end, weights ramp. To freeze from etcd, a whole fleet too, see docs/keyspace.md.
"""
_EPILOG: Final = f"""\
{EXIT_CODES}

examples:
  tidegate freeze --reason "replacing its switch"
  tidegate thaw
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `freeze` to the command line."""
    command = subparsers.add_parser(
        "freeze",
        help="keep what is in force on this host",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_socket(command)
    add_reason(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    answer = order(options, "/freeze")
    if "error" in answer:
        print(f"tidegate: {answer['error']}", file=sys.stderr)
        return 1
    print(f"generation {answer['generation']} stays: {answer['frozen']}")
    return 0
