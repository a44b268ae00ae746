# SPDX-License-Identifier: Apache-2.0
"""`tidegate simulate`: what the balancer would do with the frames of a capture, one line each.

Only arguments, files and printing. The frames run through the real program by test-run
(`dataplane/inspect/simulation.py`), through the specification (`spec/simulation.py`), or both.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.dataplane.kernel.programs import Build
    from tidegate.model.generation import Generation
    from tidegate.spec import Link
    from tidegate.spec.simulation import Outcome

    Run = Callable[[bytes], tuple[Outcome, list[str]]]

_ABOUT = """\
Run the frames of a capture, in order and with state kept, through the balancer's real program under
given documents, and print what became of each. It needs no interface and no etcd, and
affects no traffic. KEYS.json is a JSON object from key relative to the release to document:

  {"pools/web": {},
   "pools/web/backends/b1": {"address": "198.51.100.7"},
   "vips/www": {"address": "192.0.2.10", "port": 80, "protocol": "tcp", "pool": "web"}}
"""
_EPILOG = """\
exit codes: 0 done; 1 kernel and spec differ; 2 wrong usage or host; 3 documents were refused

examples:
  tidegate simulate --keys keys.json --in capture.pcap
  tidegate simulate --keys keys.json --in capture.pcap --json --out sent.pcap | jq .verdict
  tidegate simulate --keys keys.json --in capture.pcap --engine spec    # needs no privileges
"""
_COLUMNS: Final = (
    ("n", 7),
    ("verdict", 7),
    ("reason", 12),
    ("vip", 20),
    ("backend", 20),
    ("slot", 5),
    ("generation", 10),
    ("decision", 9),
    ("out_len", 7),
)
_MAC_BYTES: Final = 6
_LONGEST_PREFIX6: Final = 64  # the last 64 bits at most come from the hash
_MTUS: Final = (1280, 65535)
_REFUSED: Final = 3


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `simulate` to the command line."""
    command = subparsers.add_parser(
        "simulate",
        help="what the balancer would do with a capture",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--keys", type=Path, required=True, metavar="KEYS.json", help="the documents in force")
    add(
        "--in",
        "-i",
        dest="capture",
        type=Path,
        required=True,
        metavar="FRAMES.pcap",
        help="Ethernet capture, pcap or pcapng; - for standard input",
    )
    add(
        "--engine",
        choices=("kernel", "spec", "both"),
        default="kernel",
        help="the program (default), the specification, or both compared",
    )
    add("--out", type=Path, metavar="OUT.pcap", help="writes what is transmitted or passed")
    add("--json", action="store_true", help="one JSON document per frame")
    add("--gateway-mac", type=_mac, default="02:00:00:00:00:01", metavar="MAC", help=_default())
    add("--interface-mac", type=_mac, default="02:00:00:00:00:02", metavar="MAC", help=_default())
    add("--mtu", type=_mtu, default=1500, help="of the interface, bytes; " + _default())
    add("--hash-seed", default="default", metavar="SEED", help="as in agent.toml; " + _default())
    for family, network in (("4", "10.254.0.0/16"), ("6", "fd54::/64")):
        add(
            f"--source{family}",
            type=_network4 if family == "4" else _network6,
            default=network,
            metavar="NETWORK",
            help="outer sources, as in agent.toml; " + _default(),
        )
    command.set_defaults(run=_run)


def _default() -> str:
    return "default %(default)s"


def _mac(text: str) -> bytes:
    try:
        found = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except ValueError:
        found = b""
    if len(found) != _MAC_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a MAC address; write six bytes, such as 02:00:00:00:00:01"
        )
    return found


def _mtu(text: str) -> int:
    low, high = _MTUS
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not an MTU from {low} to {high}")
    return int(text)


def _network4(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 network: {error}") from error


def _network6(text: str) -> IPv6Network:
    try:
        network = IPv6Network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv6 network: {error}") from error
    if network.prefixlen < _LONGEST_PREFIX6:
        raise argparse.ArgumentTypeError(
            f"{text!r}: the prefix must be /{_LONGEST_PREFIX6} or longer"
        )
    return network


def _run(options: argparse.Namespace) -> int:
    from tidegate.keyspace.documents import files
    from tidegate.model.generation import NOTHING
    from tidegate.planner import plan

    # So that maps and pins are removed when a time limit ends us, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    documents = files.read([options.keys])
    if documents.faults:  # no object from key to document
        raise ConfigError("; ".join(map(str, documents.faults)))
    desired, faults = documents.check()
    if faults:
        for fault in faults:
            print(fault, file=sys.stderr)
        return _REFUSED
    generation = plan(desired, NOTHING, int(time.time()))
    try:
        with ExitStack() as stack:
            run, finish = _engine(options, generation, stack)
            return run_frames(options, run, finish)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _engine(
    options: argparse.Namespace, generation: "Generation", stack: ExitStack
) -> "tuple[Run, Callable[[], list[str]]]":
    """Return what runs a frame, and what is left to compare at the end."""
    from tidegate.dataplane.kernel.jiffies import clock
    from tidegate.spec import Link
    from tidegate.spec.simulation import Specification

    gateway = options.gateway_mac
    # A capture is from anywhere, so its frames are for any interface.
    link = Link(options.interface_mac, gateway, gateway, options.mtu, others=None)
    build = _build(options, generation)
    if options.engine == "spec":
        hz = clock().hz
        spec = Specification(build.settings(), link, lambda: int(time.monotonic() * hz))
        spec.install(generation)
        return lambda frame: (spec.run(frame), []), list
    return _kernel(build, link, generation, stack, compare=options.engine == "both")


def _kernel(
    build: "Build", link: "Link", generation: "Generation", stack: ExitStack, *, compare: bool
) -> "tuple[Run, Callable[[], list[str]]]":
    from tidegate.dataplane.inspect.simulation import Simulation

    simulation = Simulation(build, link, compare=compare)
    try:
        stack.enter_context(simulation.kernel)
    except CapabilityError as error:
        raise CapabilityError(
            f"{error}; the specification needs no privileges: --engine spec"
        ) from error
    simulation.install(generation)
    return simulation.run, simulation.compare_tables if compare else list


def _build(options: argparse.Namespace, generation: "Generation") -> "Build":
    """Return the agent's build: for what the documents use, with their seed if they have one."""
    from tidegate.dataplane.inspect.simulation import capacity
    from tidegate.dataplane.kernel.programs import Build
    from tidegate.model.features import features

    seed = generation.hash_seed or options.hash_seed
    found = features(generation)
    return Build(seed.encode(), options.source4, options.source6, found, capacity())


def run_frames(options: argparse.Namespace, run: "Run", finish: Callable[[], list[str]]) -> int:
    """Run every frame and print its line.

    Args:
        options: the command's.
        run: what became of a frame, and in what the engines differ.
        finish: in what they differ at the end.

    Returns:
        The exit code.
    """
    from tidegate.dataplane.inspect import capture

    seen: Counter[str] = Counter()
    cut = 0
    if not options.json:
        print(_row(name for name, _ in _COLUMNS))
    with ExitStack() as stack:
        writer = stack.enter_context(capture.Writer(options.out)) if options.out else None
        show = stack.enter_context(_progress())
        for number, (frame, is_cut) in enumerate(capture.read(options.capture), 1):
            outcome, faults = run(frame)
            line = _line(number, outcome)
            print(json.dumps(line) if options.json else _row(line.values()))
            if faults:
                return _differ(f"frame {number} ({frame.hex()})", faults)
            if writer and outcome.verdict.name != "DROP":
                writer.write(number, outcome.frame)
            seen[" ".join(filter(None, (outcome.verdict.name, line["reason"])))] += 1
            cut += is_cut
            show(number)
    if faults := finish():
        return _differ("the end of the capture", faults)
    _sum_up(seen, cut, is_json=options.json)
    return 0


def _sum_up(seen: "Counter[str]", cut: int, *, is_json: bool) -> None:
    if not is_json:
        print(f"{seen.total()} frames: " + ", ".join(f"{n} {k}" for k, n in seen.most_common()))
    sys.stdout.flush()
    if cut:
        print(
            f"tidegate: {cut} frames were cut by the capture's snap length; they are judged as "
            "they are, so one for a VIP is dropped for its length",
            file=sys.stderr,
        )


def _differ(place: str, faults: list[str]) -> int:
    sys.stdout.flush()
    print(f"tidegate: kernel and spec differ at {place}:", file=sys.stderr)
    for fault in faults:
        print(f"  {fault}", file=sys.stderr)
    return 1


def _line(number: int, outcome: "Outcome") -> dict[str, Any]:
    """Return a frame's line, in the order of its columns."""
    return {
        "n": number,
        "verdict": outcome.verdict.name,
        "reason": outcome.reason.name.lower() if outcome.reason else None,
        "vip": outcome.vip,
        "backend": outcome.backend.name if outcome.backend else None,
        "slot": outcome.slot,
        "generation": outcome.generation,
        "decision": None if outcome.decision is None else outcome.decision.name.lower(),
        "out_len": None if outcome.verdict.name == "DROP" else len(outcome.frame),
    }


def _row(values: Any) -> str:  # noqa: ANN401 - any iterable of cells
    cells = zip(values, _COLUMNS, strict=True)
    return " ".join(f"{'-' if v is None else v!s:<{width}}" for v, (_, width) in cells).rstrip()


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Show on a terminal how far a long capture is, twice a second at most."""
    is_shown = sys.stderr.isatty() and not sys.stdout.isatty()
    began = last = time.monotonic()

    def show(number: int) -> None:
        nonlocal last
        if not is_shown or number % 256:
            return
        now = time.monotonic()
        if now - last > 0.5:  # noqa: PLR2004
            last = now
            print(
                f"\r{number:,} frames, {number / (now - began):,.0f} a second",
                end="",
                file=sys.stderr,
                flush=True,
            )

    yield show
    if last != began:
        print(file=sys.stderr)
