# SPDX-License-Identifier: Apache-2.0
"""`tidegate health`: every backend's state, why, and by which hosts' verdicts, from etcd alone.

Arguments and the reading of keys; what they mean is in `health_view`, how it looks in
`health_show`.
"""

import argparse
import time
from typing import TYPE_CHECKING, Final

from tidegate.cli import etcd_options
from tidegate.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.cli.health_view import Report

_ABOUT: Final = """\
Show the fleet's view of each backend of a release: its state, since when, the votes that count, and
why. Where hosts differ, or find it unhealthy, each host's own finding follows. Hosts that are
blind, not ready, cannot make their checks, or keep failed backends are named. It reads etcd,
changes nothing, and needs no root and no agent.

  healthy, unhealthy  by the votes of the hosts that check it (or of a control system)
  initial             no host has decided yet
  draining            by its document
  unused              nothing checks it, or its document has taken it out
"""
_EPILOG: Final = f"""\
exit codes: 0 nothing is wrong; 1 a backend is unhealthy, or a host is blind or not ready, or cannot
make its checks; 2 etcd does not answer, or there is no such pool

{etcd_options.WHERE}
examples:
  tidegate health
  tidegate health web --bad
  tidegate health --json | jq -r '.pools[].backends[] | select(.state == "unhealthy") | .backend'
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `health` to the command line."""
    command = subparsers.add_parser(
        "health",
        help="every backend's state, and which host says so",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("pool", nargs="?", metavar="POOL", help="only this pool")
    command.add_argument(
        "--release",
        metavar="NAME",
        help="release of the backends (default: the one that most hosts have in force)",
    )
    command.add_argument("--bad", action="store_true", help="leave out what is healthy or unused")
    command.add_argument("--json", action="store_true", help="one JSON object with everything")
    command.set_defaults(run=_run)
    etcd_options.add_options(command)


def _run(options: argparse.Namespace) -> int:
    from tidegate.cli import health_show

    report = _read(options)
    if options.pool is not None:
        chosen = tuple(pool for pool in report.pools if pool.pool == options.pool)
        if not chosen:
            known = ", ".join(pool.pool for pool in report.pools) or "none"
            raise ConfigError(
                f"release {report.release} has no pool {options.pool}; it has: {known}"
            )
        report = report.only(chosen)
    if options.json:
        print(health_show.as_json(report))
    else:
        lines = health_show.lines(report, int(time.time()), only_bad=options.bad)
        print("\n".join(lines))
    return 1 if report.is_bad else 0


def _read(options: argparse.Namespace) -> "Report":
    from tidegate.cli import health_view
    from tidegate.keyspace.documents.validate import validate
    from tidegate.keyspace.etcd.store import Store
    from tidegate.model.values import EMPTY

    with Store(etcd_options.fleet(options)) as store:
        statuses = store.read("status/")
        release = options.release or health_view.release_of(statuses)
        desired, rejections = validate(store.read_release(release), EMPTY)
        verdicts = store.read_verdicts()
    refused = tuple(f"{each}" for each in rejections)
    return health_view.view(release, desired, statuses, verdicts, refused)
