# SPDX-License-Identifier: Apache-2.0
"""`tidegate events`: events of sampled flows from the data plane, as they happen.

Only arguments and printing; the events come from `dataplane/inspect/event_stream.py`.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import AgentError, RingTaken

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.agent.config import AgentConfig
    from tidegate.dataplane.inspect.event_stream import EventSource, NamedEvents

_ABOUT = """\
Print the events of flows that VIPs with `flow_sampling` above 0 have sampled: new, promoted, moved,
finished, reset, dropped, flood. It starts with events that nobody has read yet, and runs until it
is interrupted. It needs no agent. An event can be read once, so there is one reader at a time; an
agent that traces flows is that reader, and passes on new events if its file is named.
"""
_EPILOG = """\
exit codes: 0 as many as were asked for; 2 wrong usage or host, or another reader; 130 interrupted

examples:
  tidegate events
  tidegate events -c agent.toml --json -n 100 | jq -r 'select(.event == "dropped") | .reason'
"""
_CONFIG: Final = Path("/etc/tidegate/agent.toml")
_WAIT: Final = 1.0
"""Seconds; between two waits an interruption and losses are noticed."""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `events` to the command line."""
    command = subparsers.add_parser(
        "events",
        help="what happens to sampled flows, live",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "-c",
        "--config",
        type=Path,
        default=_CONFIG,
        metavar="FILE",
        help="the agent's file, which names the pins; default %(default)s",
    )
    where.add_argument("--pin-dir", type=Path, metavar="DIR", help="or the folder of the pins")
    command.add_argument("--json", action="store_true", help="one JSON document per event")
    command.add_argument("-n", type=_number, metavar="N", help="end after so many")
    command.set_defaults(run=_run)


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of events")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from tidegate.dataplane.inspect.event_stream import NamedEvents

    try:
        with ExitStack() as undo:
            pins = options.pin_dir or _config(options).pin_dir
            stream = undo.enter_context(NamedEvents(Path(pins), _source(options, Path(pins), undo)))
            if not stream.samples:
                _note("no VIP has flow_sampling above 0; there are no events until one has")
            for event in islice(_all(stream), options.n):
                print(json.dumps(event) if options.json else _line(event), flush=True)
            _note_lost(stream)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _config(options: argparse.Namespace) -> "AgentConfig":
    from tidegate.agent import config

    return config.read(options.config)


def _source(options: argparse.Namespace, pins: Path, undo: ExitStack) -> "EventSource":
    """Return the ring buffer, or the agent if that reads it."""
    from tidegate.cli.agent_events import AgentEvents
    from tidegate.dataplane.inspect.event_stream import RingReader

    try:
        return undo.enter_context(RingReader(pins))
    except RingTaken as taken:
        if options.pin_dir:
            raise RingTaken(f"{taken}; if it is the agent, name its file with -c") from taken
        try:
            return AgentEvents(Path(_config(options).control_socket))
        except AgentError as error:
            raise RingTaken(f"{taken}, and it is not the agent ({error})") from error


def _all(stream: "NamedEvents") -> Iterator[dict[str, Any]]:
    while True:
        yield from stream.read(_WAIT)
        _note_lost(stream)


def _note_lost(stream: "NamedEvents") -> None:
    lost = stream.lost()
    if lost:
        _note(f"{lost:,} events were lost: above the limit per CPU, or the ring buffer was full")


def _note(text: str) -> None:
    sys.stdout.flush()
    print(f"tidegate: {text}", file=sys.stderr, flush=True)


def _line(event: dict[str, Any]) -> str:
    """Return an event as a line; what no longer has a name is shown by its id."""
    vip = event["vip"] or f"vip#{event['vip_id']}"
    line = f"{event['time']} {event['event']:<8} {vip} {event['protocol']} "
    line += f"{_end(event['source'], event['source_port'])} > "
    line += _end(event["destination"], event["port"])
    if event["backend_id"]:
        name = (
            f"{event['pool']}/{event['backend']}"
            if event["backend"]
            else "#" + str(event["backend_id"])
        )
        line += f" backend={name}"
    for field in ("slot", "generation", "decision", "reason"):
        if event[field] is not None:
            line += f" {field}={event[field]}"
    return line


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
