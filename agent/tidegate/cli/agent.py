# SPDX-License-Identifier: Apache-2.0
"""`tidegate agent`: run it, check its file, and take its data plane down for good."""

import argparse
import gc
import logging
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_RUN_EXAMPLES = """\
examples:
  tidegate agent run -c /etc/tidegate/agent.toml
  kill -HUP PID      read the file again
  kill -TERM PID     stop; packets go on being forwarded
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
    remove = commands.add_parser(
        "remove",
        help="detach the program and remove the pins: connections through this host end",
    )
    for command, action in ((run, _run), (check, _check), (remove, _remove)):
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
    agent = Agent(options.config)
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


def _remove(options: argparse.Namespace) -> int:
    from tidegate.agent import config
    from tidegate.dataplane import plane

    found = config.read(options.config)
    plane.remove(Path(found.pin_dir), found.interfaces)
    print(f"removed {found.pin_dir} and detached {', '.join(found.interfaces)}")
    return 0
