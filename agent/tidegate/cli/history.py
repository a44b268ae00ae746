# SPDX-License-Identifier: Apache-2.0
"""`tidegate history`: what was in force when, who changed it, what was refused, whose a flow was.

Only its options: `history_show` prints, and `tidegate.agent.journal` reads the journal. No agent
has to run.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidegate.cli.history_arguments import endpoint, moment

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_ABOUT: Final = """\
Read the journal of this host's generations: what changed, which keys at which revision, what was
refused and why. No agent and no etcd is needed. Times are UTC: 12:03 or 12:03:04 (the last time
that the clock showed this), 2026-01-31T12:03:04Z, or 90s, 30m, 2h, 1d (ago).
"""
_EPILOG: Final = """\
exit codes: 0 done; 1 nothing was found; 2 the journal cannot be read

examples:
  tidegate history
  tidegate history -n 5 --key pools/web
  tidegate history --since 2h --json | jq -r 'select(.type == "refused") | .refusals[].reason'
"""
_OWNER_ABOUT: Final = """\
Say which backend a flow belonged to at a time: the VIP, the slot of the flow hash, the pool, the
owner of flows that began then, and, if the slot was in transition, the owner of older flows. The
key of the flow hash is not in the journal: it is taken from the pins or from the agent's file.
"""
_OWNER_EPILOG: Final = """\
exit codes: 0 done; 1 nothing was found; 2 the journal cannot be read

examples:
  tidegate history owner --at 12:03:04 tcp 198.51.100.7:40000 192.0.2.10:443
  tidegate history owner --at 30m udp [2001:db8::1]:40000 [2001:db8::2]:443 --json
"""
_AGENT_FILE: Final = Path("/etc/tidegate/agent.toml")


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `history` to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    command = subparsers.add_parser(
        "history",
        help="what was in force when, and who changed it",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=raw,
    )
    _add_place(command)
    command.add_argument(
        "-n", type=int, default=20, metavar="N", help="the last N lines; 0 is all (20)"
    )
    command.add_argument("--key", metavar="KEY", help="only what concerns this key or those below")
    command.add_argument("--since", type=moment, metavar="TIME", help="only what came later")
    command.add_argument("--json", action="store_true", help="one JSON object a line")
    command.set_defaults(run=_run)
    owner = command.add_subparsers(metavar="owner").add_parser(
        "owner",
        help="which backend had a flow",
        description=_OWNER_ABOUT,
        epilog=_OWNER_EPILOG,
        formatter_class=raw,
    )
    _add_place(owner)
    owner.add_argument("--at", type=moment, required=True, metavar="TIME", help="when")
    owner.add_argument("protocol", choices=("tcp", "udp"))
    owner.add_argument("client", type=endpoint, metavar="CLIENT:PORT")
    owner.add_argument("vip", type=endpoint, metavar="VIP:PORT", help="IPv6 as [ADDRESS]:PORT")
    owner.add_argument("--json", action="store_true", help="one JSON object")
    owner.set_defaults(run=_run_owner)


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-c",
        "--config",
        type=Path,
        default=_AGENT_FILE,
        metavar="FILE",
        help=f"the agent's file ({_AGENT_FILE})",
    )
    command.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="where the journal is, without the file"
    )


def _run(options: argparse.Namespace) -> int:
    from tidegate.cli import history_show

    return history_show.show_lines(options)


def _run_owner(options: argparse.Namespace) -> int:
    from tidegate.cli import history_show

    return history_show.show_owner(options)
