# SPDX-License-Identifier: Apache-2.0
"""What `freeze`, `thaw` and `rollback` have in common: an order to the agent, and its answer.

A command says what it is and what an answer means; `agent_socket` carries the order.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from tidegate.cli import agent_socket

if TYPE_CHECKING:
    from argparse import _SubParsersAction

EXIT_CODES: Final = "exit codes: 0 done; 1 the agent refused it; 2 the agent cannot be asked"
Show: TypeAlias = Callable[[dict[str, Any]], Iterable[str]]


def add_order(
    subparsers: "_SubParsersAction[argparse.ArgumentParser]",
    name: str,
    show: Show,
    *,
    summary: str,
    about: str,
    examples: str = "",
) -> argparse.ArgumentParser:
    """Add a command that gives the order of its name, and return it.

    Args:
        subparsers: where to add it.
        name: of the command, and of the order's path on the control socket.
        show: turns the agent's answer into lines; not called with a refusal.
        summary: one line for the list of commands.
        about: what the order does.
        examples: lines for the end of the help; may be empty.
    """
    command = subparsers.add_parser(
        name,
        help=summary,
        description=about,
        epilog=f"{EXIT_CODES}\n\nexamples:\n{examples}" if examples else EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    agent_socket.add_socket(command)
    command.add_argument("--reason", default="", metavar="TEXT", help="why; the status shows it")
    command.set_defaults(run=lambda options: _run(options, f"/{name}", show))
    return command


def _run(options: argparse.Namespace, path: str, show: Show) -> int:
    fields = {"to": options.to} if "to" in options else {}
    answer = agent_socket.post_order(options, path, **fields)
    if "error" in answer:
        print(f"tidegate: {answer['error']}", file=sys.stderr)
        return 1
    for line in show(answer):
        print(line)
    return 0
