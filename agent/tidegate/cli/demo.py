# SPDX-License-Identifier: Apache-2.0
"""`tidegate demo`: real connections while backends come, go, move and die, and the agent with them.

Only arguments and printing; what is shown is in `tidegate.lab.demo`.
"""

import argparse
import json
import signal
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.lab.verdict import Observed

_ABOUT = """\
Build a rack in network namespaces (this needs root), start the agent, and open thousands of
connections through it while keys in etcd change. The end is a table of claims; the exit code is 1
if one does not hold.
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo` to the command line."""
    demo = subparsers.add_parser(
        "demo",
        help="show on real packets that no connection is lost",
        description=_ABOUT,
        epilog="Example: tidegate demo --quick --json > result.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--json", action="store_true", help="one JSON document at the end")
    demo.add_argument("--quick", action="store_true", help="the same with shorter pauses")
    demo.add_argument("--name", default="demo", help="name of its lab (default demo)")
    demo.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from tidegate.lab.demo import FULL, QUICK, run

    # So that the lab is removed when a time limit ends us, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    progress = sys.stderr if arguments.json else sys.stdout
    began = time.monotonic()
    observed = run(
        arguments.name,
        QUICK if arguments.quick else FULL,
        lambda line: print(line, file=progress, flush=True),
    )
    seconds = time.monotonic() - began
    document = observed.as_json()
    if arguments.json:
        print(json.dumps({**document, "seconds": round(seconds, 1)}, indent=2))
    else:
        _print(observed, seconds)
    return 0 if document["holds"] else 1


def _print(observed: "Observed", seconds: float) -> None:
    from tidegate.lab.claims import claims_table, table

    print("\nShare of new connections by VIP and backend (sd: standard deviations)")
    rows = [
        (
            share.target,
            share.backend,
            f"{share.expected:.1%}",
            f"{share.observed:.1%}",
            f"{share.connections:,} of {share.total:,}",
            f"{share.deviations:+.1f} sd",
        )
        for share in observed.shares
    ]
    print(table(("VIP", "backend", "expected", "observed", "connections", "off by"), rows))
    wrong = [one for one in observed.troubles if not observed.death.of_victim(one)]
    if wrong:
        print("\nConnections that should not have broken (the first 20)")
        for one in wrong[:20]:
            print(f"  {one}")
    print("\nMeasured")
    print(table(("what", "value"), observed.measured()))
    claims = observed.claims()
    print("\nClaims")
    print(claims_table(claims))
    failed = sum(not claim.holds for claim in claims)
    summary = f"{failed} of {len(claims)} claims do NOT hold" if failed else "All claims hold"
    print(f"\n{summary}. {seconds:.0f} seconds.")
