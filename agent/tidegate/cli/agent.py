# SPDX-License-Identifier: Apache-2.0
"""`tidegate agent`: run it, check its file, and take its data plane down for good."""

import argparse
import gc
import json
import logging
import resource
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_RUN_EXAMPLES = """\
examples:
  tidegate agent run -c /etc/tidegate/agent.toml
  kill -HUP PID      read the file again
  kill -TERM PID     stop; packets go on being forwarded
  tidegate agent run --take-over -c /etc/tidegate/agent.toml
                     once, where the start has refused what it found on an interface

A start adopts a program that is certainly this agent's: it is pinned in pin_dir, uses a map that is
pinned there, or names this fleet, host and pin_dir as its owner. Connections stay then. With
--take-over it replaces whatever else is there: another agent's program, one of an older version
without its pins, or one of another product; and where pins do not fit this version, it begins
anew. Packets for VIPs are not forwarded until documents have been read, some seconds, and
connections may move.
"""

_REPIN_EXAMPLES = """\
Needed where files below pin_dir were deleted, or its BPF file system is gone, while the agent did
not run. Takes CAP_SYS_ADMIN, and changes nothing that packets see. The unit runs it at each start.

example:
  tidegate agent repin -c /etc/tidegate/agent.toml
"""

_REMOVE_EXAMPLES = """\
Stop the agent first. Says of each interface what became of the program and of the filter of health
checks, and of the pins. Exit code 1: something of this agent's is left, or an interface has a
program that is not its own.

examples:
  tidegate agent remove -c /etc/tidegate/agent.toml
  tidegate agent remove -c /etc/tidegate/agent.toml --json | jq '.[] | select(.result == "failed")'
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group to the command line."""
    group = subparsers.add_parser("agent", help="run the agent of a load-balancer host")
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="run the agent in the foreground",
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check = commands.add_parser("check", help="check the agent's file and do nothing else")
    repin = commands.add_parser(
        "repin",
        help="put lost pins of the program that runs back, so that an agent can start from them",
        epilog=_REPIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    remove = commands.add_parser(
        "remove",
        help="detach the program and remove the pins: connections through this host end",
        epilog=_REMOVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--take-over",
        action="store_true",
        help="replace programs on the interfaces that are not certainly this agent's",
    )
    remove.add_argument("--json", action="store_true", help="one JSON array")
    actions = ((run, _run), (check, _check), (repin, _repin), (remove, _remove))
    for command, action in actions:
        command.add_argument(
            "-c", "--config", type=Path, required=True, metavar="FILE", help="the agent's TOML file"
        )
        command.set_defaults(run=action)


def _run(options: argparse.Namespace) -> int:
    from tidegate.agent.loop import Agent
    from tidegate.telemetry import log_output

    log_output.set_up()
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    # Each backend with a TCP check has a socket, and the usual soft limit is 1,024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    agent = Agent(options.config, takes_over=options.take_over)
    # What imports have made is never garbage; to look through it holds the loop up for 50 ms.
    gc.collect()
    gc.freeze()
    agent.run()
    return 0


def _check(options: argparse.Namespace) -> int:
    from tidegate.agent import config

    found = config.read(options.config)
    print(
        f"{options.config}: host {found.host}, fleet {found.fleet}, "
        f"track {found.track or 'stable'}, release {found.release}, "
        f"interfaces {', '.join(found.interfaces)}"
    )
    return 0


def _repin(options: argparse.Namespace) -> int:
    from tidegate.agent import config
    from tidegate.agent.plane_settings import plane_settings
    from tidegate.dataplane.repin import repin

    found = config.read(options.config)
    count = repin(replace(plane_settings(found), file=options.config))
    print(f"{found.pin_dir}: {count or 'no'} pins were put back")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from tidegate.agent import config
    from tidegate.agent.plane_settings import plane_settings
    from tidegate.dataplane import removal

    settings = plane_settings(config.read(options.config))
    parts = removal.remove(settings.pins, settings.interfaces, settings.own)
    if options.json:
        print(json.dumps([asdict(each) for each in parts]))
    else:
        for each in parts:
            print(each)
    return 0 if all(each.is_gone for each in parts) else 1
