# SPDX-License-Identifier: Apache-2.0
"""`tidegate lab`: a rack in network namespaces, for trials.

Only arguments and printing; `tidegate.lab` does the work.
"""

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from tidegate.errors import LabError

if TYPE_CHECKING:
    from tidegate.lab.rack import Lab

_ABOUT = """\
A rack in network namespaces: a router, two clients, LB hosts, backends that serve HTTP and echo UDP
on the VIPs, and a control node with a real etcd. It needs root, and touches nothing but its own.

  tidegate lab up --backends 4 --agents
  tidegate lab exec ctl -- etcdctl put /tidegate/default/config/live/pools/web '{}'
  tidegate lab exec client1 -- curl -s http://10.99.0.1/
  tidegate lab down
"""


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `lab` and its commands; each sets `run`, from arguments to exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    lab = subparsers.add_parser(
        "lab", help="a rack in network namespaces", description=_ABOUT, formatter_class=raw
    )
    commands = lab.add_subparsers(dest="lab_command", required=True, metavar="COMMAND")
    up = _command(
        commands, "up", _up, "build it", "tidegate lab up --name mine --backends 8 --lbs 2 --agents"
    )
    up.add_argument("--backends", type=int, default=4, metavar="N", help="1 to 150 (default 4)")
    up.add_argument("--lbs", type=int, default=1, metavar="N", help="LB hosts, 1 to 64 (default 1)")
    up.add_argument("--agents", action="store_true", help="start the agent on each LB host")
    _command(commands, "down", _down, "end its processes and remove it", "tidegate lab down")
    status = _command(commands, "status", _status, "what it has", "tidegate lab status --json")
    status.add_argument("--json", action="store_true", help="for machines")
    run = _command(
        commands,
        "exec",
        _exec,
        "run a command on one of its nodes",
        "tidegate lab exec client1 -- curl -s http://10.99.0.1/",
    )
    run.add_argument("node", metavar="NODE", help="router, ctl, client1, client2, lb1…, b1…")
    run.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help="after `--`")


def _command(commands: Any, name: str, run: Any, text: str, example: str) -> Any:  # noqa: ANN401 - argparse's private types
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=f"Example: {example}"
    )
    parser.add_argument("--name", default="tg0", help="which lab (default tg0)")
    parser.set_defaults(run=run)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    # imported in the commands: pyroute2 takes 140 ms, which --help need not wait for
    from tidegate.lab import state
    from tidegate.lab.plan import LabSpec
    from tidegate.lab.rack import Lab

    spec = LabSpec(name=arguments.name, backends=arguments.backends, lbs=arguments.lbs)
    lab = Lab(spec)
    with state.locked(spec.name):
        if state.saved(spec.name) == spec and lab.is_whole():
            print(f"lab {spec.name} is up already")
        else:
            lab.up()
            print(f"lab {spec.name} is up: {', '.join(lab.nodes)}")
        if arguments.agents:
            _start_agents(lab)
    print(f"VIPs: {lab.vip4()} and {lab.vip6()}, TCP 80 (HTTP) and UDP 7 (echo)")
    for lb in lab.lbs():
        print(f"agent of {lb.name}: tidegate agent run -c {lab.folder(lb.name)}/agent.toml")
    return 0


def _start_agents(lab: "Lab") -> None:
    running = {node["name"]: node["processes"] for node in lab.status()["nodes"]}
    for lb in lab.lbs():
        if any(" agent run " in process["command"] for process in running[lb.name]):
            print(f"{lb.name}: an agent is running already")
            continue
        agent = lab.start_agent(lb.name)
        print(f"{lb.name}: agent started (pid {agent.process.pid}), log {agent.log}")


def _down(arguments: argparse.Namespace) -> int:
    from tidegate.lab import state
    from tidegate.lab.plan import LabSpec

    spec = LabSpec(name=arguments.name)
    spec.check()
    with state.locked(spec.name):
        found = state.erase(spec)
    print(f"lab {spec.name} is gone" if found else f"there was nothing of a lab {spec.name}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from tidegate.lab.rack import Lab

    status = Lab.attach(arguments.name).status()
    if arguments.json:
        print(json.dumps(status, indent=2))
        return 0
    print(f"lab {status['name']}, files in {status['folder']}, VIPs {', '.join(status['vips'])}")
    for node in status["nodes"]:
        state = "" if node["exists"] else "MISSING "
        print(f"  {node['name']:8} {state}{' '.join(node['addresses'])}")
        for process in node["processes"]:
            print(f"           {process['pid']:>7} {process['command'][:80]}")
    return 0 if all(node["exists"] for node in status["nodes"]) else 1


def _exec(arguments: argparse.Namespace) -> int:
    from tidegate.lab import netns
    from tidegate.lab.rack import Lab

    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise LabError("say what to run: tidegate lab exec NODE -- CMD…")
    node = Lab.attach(arguments.name).node(arguments.node)
    sys.stdout.flush()
    with netns.entered(node.namespace):
        try:
            os.execvp(argv[0], argv)  # noqa: S606 - the user's own command
        except OSError as error:
            raise LabError(f"cannot run {argv[0]!r}: {error.strerror}") from error
