# SPDX-License-Identifier: Apache-2.0
"""`tidegate decap`: attach a backend's end of the tunnel to an interface, show it, detach it.

Only arguments and printing; what is done is in `dataplane/tunnel/decap.py`.
"""

import argparse
import json
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.model.values import Address
from tidegate.spec.decap import GUE_PORT, PASSED, TAKEN_OUT, Accept, Outcome

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_ABOUT = """\
For backends: an XDP program that takes clients' packets out of the tunnel (IPIP, IP6IP6, IP4IP6,
6-in-4, GUE) and passes them to the host's stack. It runs without this command, until `detach` or a
reboot. Another `attach` replaces it atomically.
"""
_EPILOG = """\
exit codes: 0 done; 1 status, detach: it is not attached; 2 wrong usage or host

examples:
  tidegate decap attach eth0 --address 198.51.100.7 --source 10.254.0.0/16 --source fd54::/64
  tidegate decap status eth0 --json
  tidegate decap detach eth0
"""
_PINS: Final = Path("/sys/fs/bpf/tidegate-decap")
_MOST_PORT: Final = 65535


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    group = subparsers.add_parser(
        "decap",
        help="a backend's end of the tunnel",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    attach = commands.add_parser("attach", help="attach it to an interface")
    add = attach.add_argument
    add(
        "--address",
        type=_address,
        action="append",
        default=[],
        metavar="A",
        help="outer destination that is ours; can be repeated; default: any",
    )
    add(
        "--source",
        type=_prefix,
        action="append",
        default=[],
        metavar="PREFIX",
        help="outer sources of the load balancers (their source4 and source6); can be repeated; "
        "default: any, and then a stranger gets packets past the filters before this host",
    )
    add(
        "--gue-port",
        type=_port,
        default=GUE_PORT,
        metavar="N",
        help="UDP port of GUE; 0: no GUE; default %(default)s",
    )
    add(
        "--mode",
        choices=("native", "generic", "auto"),
        default="auto",
        help="of XDP; auto (default): native, or generic where the driver refuses",
    )
    detach = commands.add_parser("detach", help="detach it from an interface")
    status = commands.add_parser("status", help="show what it accepts, and its counters of packets")
    status.add_argument("--json", action="store_true", help="for machines")
    for command, action in ((attach, _attach), (detach, _detach), (status, _status)):
        command.add_argument("interface", metavar="IFACE", help="where the tunnel packets come in")
        command.add_argument(
            "--pin-dir",
            type=Path,
            default=_PINS,
            metavar="DIR",
            help="on a BPF file system; each network namespace needs its own; default %(default)s",
        )
        command.set_defaults(run=action)


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from error


def _prefix(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a prefix: {error}") from error


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {_MOST_PORT}")
    return int(text)


def _attach(options: argparse.Namespace) -> int:
    from tidegate.dataplane.tunnel import decap

    accept = Accept(frozenset(options.address), tuple(options.source), options.gue_port)
    mode = decap.attach(options.interface, accept, options.mode, options.pin_dir)
    print(f"{options.interface}: attached in {mode} mode, {_described(accept)}")
    return 0


def _detach(options: argparse.Namespace) -> int:
    from tidegate.dataplane.tunnel import decap

    was_there = decap.detach(options.interface, options.pin_dir)
    print(f"{options.interface}: " + ("detached" if was_there else "was not attached"))
    return 0 if was_there else 1


def _status(options: argparse.Namespace) -> int:
    from tidegate.dataplane.tunnel import decap

    found = decap.status(options.interface, options.pin_dir)
    if options.json:
        print(json.dumps(_document(options.interface, found)))
    else:
        for line in _lines(options.interface, found):
            print(line)
    return 0 if found.mode else 1


def _described(accept: Accept) -> str:
    addresses = ", ".join(sorted(map(str, accept.addresses))) or "any address"
    sources = ", ".join(map(str, accept.sources)) or "anywhere"
    gue = f"GUE on UDP port {accept.gue_port}" if accept.gue_port else "no GUE"
    return f"for {addresses} from {sources}, {gue}"


def _document(interface: str, found: Any) -> dict[str, Any]:  # noqa: ANN401 - of a lazy module
    """Return all counters, those at 0 too, by their names in lower case."""
    return {
        "interface": interface,
        "attached": found.mode,
        "foreign_program": found.foreign,
        "addresses": sorted(map(str, found.accept.addresses)),
        "sources": list(map(str, found.accept.sources)),
        "gue_port": found.accept.gue_port,
        "counters": {outcome.name.lower(): found.counters[outcome] for outcome in Outcome},
    }


def _lines(interface: str, found: Any) -> list[str]:  # noqa: ANN401
    if found.foreign:
        return [f"{interface}: not attached; another XDP program is there (id {found.foreign})"]
    if not found.mode:
        return [f"{interface}: not attached"]
    lines = [f"{interface}: attached in {found.mode} mode, {_described(found.accept)}"]
    for outcome, packets in sorted(found.counters.items()):
        fate = "taken out" if outcome in TAKEN_OUT else "passed" if outcome in PASSED else "dropped"
        lines.append(f"  {outcome.name.lower():18} {packets:>12} {fate}")
    return lines if len(lines) > 1 else [*lines, "  no tunnel packet yet"]
