# SPDX-License-Identifier: Apache-2.0
"""`tidegate rollout`: bring a release to a fleet in waves, and back if hosts fail with it.

Only arguments and printing: `rollout/machine.py` decides, `rollout/driver.py` acts.
"""

import argparse
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli import etcd_options, trace_option
from tidegate.cli.durations import duration
from tidegate.errors import ConfigError, TidegateError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.keyspace.etcd.store import Store
    from tidegate.rollout.driver import Driver, Order

INVALID: Final = 3
PUT_BACK: Final = 5
STOPPED: Final = 6
INTERRUPTED: Final = 130
PATIENCE: Final = 60.0
"""Seconds for which a rollout waits for etcd: long enough to restart all its members."""

_CODES: Final = """\
exit codes: 0 done (of abort: all is put back); 2 it cannot start, or etcd does not answer; 3 the
release has faults; 5 it failed or was aborted, and all is put back; 6 it is paused, or another
process drives it; 130 interrupted, and paused
"""
_EXAMPLES: Final = f"""\
{_CODES}
{etcd_options.WHERE}
examples:
  tidegate rollout start 2026-01-31.2 --waves canary,25%,100% --bake 60s
  tidegate rollout start 2026-01-31.2 --dry-run
  tidegate rollout start 2026-01-31.2 --abort-on nack,degraded,digest,drops=0.1%,unhealthy=5%
  tidegate rollout status --watch
  tidegate rollout pause
  tidegate rollout resume
  tidegate rollout abort
"""
_ABOUT: Final = """\
Move hosts to a release wave by wave, by their keys under hosts/, and watch their statuses. If a
host that was moved fails a criterion, all hosts are put back. If none does, the tracks that the
hosts came from name the release, and the hosts have their keys back as they were. All state is in
etcd: if this process dies, `resume` continues from any machine.
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    group = subparsers.add_parser(
        "rollout",
        help="bring a release to a fleet in waves",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    commands = group.add_subparsers(metavar="COMMAND", required=True)
    for name, run, text in (
        ("start", _start, "start a rollout, and drive it to its end"),
        ("status", _status, "show its state"),
        ("pause", _pause, "stop it before its next step; hosts stay where they are"),
        ("resume", _resume, "continue it, in place of the process that drives it now, if any"),
        ("abort", _abort, "put back everything that was moved"),
    ):
        command = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=_EXAMPLES,
            formatter_class=raw,
        )
        command.set_defaults(run=run)
        if name == "start":
            _add_start_options(command)
        if name == "status":
            command.add_argument("--json", action="store_true", help="for programs")
            command.add_argument("--watch", action="store_true", help="until it ends")
        etcd_options.add_options(command)


def _add_start_options(command: argparse.ArgumentParser) -> None:
    from tidegate.rollout.waves import DEFAULT_CRITERIA

    command.add_argument("release", metavar="RELEASE", help="a name under config/")
    command.add_argument(
        "--waves",
        default="canary,25%,100%",
        metavar="WAVE,…",
        help="each the name of a track (its hosts), or up to which share (25%%) or number (3) of "
        "all hosts it goes; the last is 100%% (default canary,25%%,100%%)",
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="show which hosts each wave would move, and start nothing",
    )
    for name, text in (
        ("bake", "how long each wave is watched"),
        ("timeout", "how long hosts may take to acknowledge"),
    ):
        command.add_argument(
            f"--{name}", type=duration, default=60, metavar="TIME", help=f"{text} (default 60s)"
        )
    command.add_argument(
        "--abort-on",
        default=DEFAULT_CRITERIA,
        metavar="WHAT,…",
        help="nack (refusals), degraded, vanished, digest (moved hosts disagree), and drops=, "
        "misses=, unhealthy=: percentage points above the hosts that were not moved "
        f"(default {DEFAULT_CRITERIA})",
    )
    trace_option.add_option(command)


def _print_line(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _start(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.keyspace.status.document import rfc3339
    from tidegate.model.rollout import RolloutDocument
    from tidegate.rollout import orders
    from tidegate.rollout.driver import driver_name, who
    from tidegate.rollout.fleet import KEYS, observe
    from tidegate.rollout.waves import parse_criteria, parse_waves

    now = rfc3339(time.time())
    document = RolloutDocument(
        release=options.release,
        track=orders.track_of(options.release),
        waves=parse_waves(options.waves),
        bake=options.bake,
        timeout=options.timeout,
        abort_on=parse_criteria(options.abort_on),
        driver=driver_name(),
        started_by=who(),
        started_at=now,
        changed_at=now,
        traceparent=trace_option.traceparent(options),
    )
    with Store(etcd_options.fleet(options)) as store:
        faults = _faults(store, document.release)
        for fault in faults:
            print(f"{document.release}: {fault}", file=sys.stderr)
        if faults and document.abort_on.nack:
            print("not started: every host would refuse this", file=sys.stderr)
            return INVALID
        if options.dry_run:
            step = orders.start(document, observe(store.read(*KEYS)))
            print("\n".join(step.lines))
            return 0
        return _drive(store, document.driver, lambda seen: orders.start(document, seen))


def _faults(store: "Store", release: str) -> tuple[Any, ...]:
    from tidegate.keyspace.documents.validate import validate
    from tidegate.model.values import EMPTY

    snapshot = store.read_release(release)
    if not snapshot.documents:
        raise ConfigError(
            f"the release {release} has no documents; `tidegate apply --release {release}` "
            "writes them"
        )
    return validate(snapshot, EMPTY).rejections


def _resume(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.rollout import orders
    from tidegate.rollout.driver import current, driver_name

    name = driver_name()
    with Store(etcd_options.fleet(options)) as store:
        return _drive(
            store,
            name,
            lambda seen: orders.resume(current(seen), seen, name, time.time()),
        )


def _abort(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.rollout import orders
    from tidegate.rollout.driver import current, driver_name, who

    name = driver_name()
    with Store(etcd_options.fleet(options)) as store:
        code = _drive(
            store,
            name,
            lambda seen: orders.abort(current(seen), name, who(), time.time()),
        )
    return 0 if code == PUT_BACK else code


def _drive(store: "Store", name: str, order: "Order") -> int:
    """Give an order and drive the rollout from there; Ctrl-C pauses it."""
    from tidegate.rollout.driver import Driver

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    driver = Driver(store, name, _print_line)
    driver.order(order)
    store.patience = PATIENCE
    signal.signal(signal.SIGTERM, interrupt)
    try:
        why, document = driver.run()
    except KeyboardInterrupt:
        return _interrupted(driver)
    except TidegateError as error:
        raise type(error)(
            f"{error}\nthe rollout is unchanged; `tidegate rollout resume` continues it"
        ) from error
    if why == "taken over":
        print(f"another process has it now: {document.driver}", file=sys.stderr)
        return STOPPED
    if why == "paused":
        print("`tidegate rollout resume` continues, `abort` puts everything back", file=sys.stderr)
        return STOPPED
    return 0 if document.state == "done" else PUT_BACK


def _interrupted(driver: "Driver") -> int:
    from tidegate.rollout.driver import who

    with suppress(TidegateError):
        driver.order(_pausing(f"interrupted by {who()}"))
    print(
        "interrupted; hosts stay where they are: `tidegate rollout resume` continues, `abort` puts "
        "everything back",
        file=sys.stderr,
    )
    return INTERRUPTED


def _pausing(reason: str) -> "Order":
    from tidegate.model.rollout import ENDED
    from tidegate.rollout import orders
    from tidegate.rollout.driver import current

    def order(seen: Any) -> Any:  # noqa: ANN401 - an Order
        document = current(seen)
        if document.state in ENDED:
            raise ConfigError(f"the rollout of {document.release} has ended: {document.state}")
        return orders.pause(document, reason, time.time())

    return order


def _pause(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.rollout.driver import Driver, driver_name, who

    with Store(etcd_options.fleet(options)) as store:
        Driver(store, driver_name(), _print_line).order(_pausing(f"paused by {who()}"))
    return 0


def _status(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.model.rollout import ENDED
    from tidegate.rollout.driver import current
    from tidegate.rollout.fleet import KEYS, observe
    from tidegate.rollout.report import as_json, as_text

    shown = ""
    with Store(etcd_options.fleet(options)) as store:
        while True:
            seen = observe(store.read(*KEYS))
            document = current(seen)
            text = as_json(document, seen) if options.json else as_text(document, seen)
            if text != shown:
                print(text, flush=True)
                shown = text
            if not options.watch or document.state in ENDED:
                return 0
            time.sleep(1)  # commands have no watch; a person reads no faster
