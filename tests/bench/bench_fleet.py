# SPDX-License-Identifier: Apache-2.0
"""The largest fleet that the documentation promises: 1,023 pools and 65,535 backends, one agent.

It is run with the limits of the shipped unit (MemoryMax, TasksMax, LimitNOFILE, the filter of
system calls) and with the patience of its service manager. Prints how long a start and a change of
all weights took, when servers that ended meanwhile were out, and the most memory that it had. Fails
if the manager would have ended it, or a server was not out within MOST_SECONDS.
"""

import argparse
import secrets
import sys

from support.fleet.largest_run import SERVERS, run
from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab

MOST_SECONDS = 5.0
"""Of which 0.6 s are the two probes that find it."""


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=int, default=1_023)
    parser.add_argument("--backends", type=int, default=65_535)
    parser.add_argument("--patience", type=float, default=900, help="seconds for each step")
    parser.add_argument("--check", action="store_true", help="a small one, as CI runs it")
    options = parser.parse_args()
    if options.check:
        options.pools, options.backends = 50, 500
    spec = LabSpec(name=f"t{secrets.token_hex(4)}", backends=len(SERVERS))
    with Lab(spec) as lab, StatusWatch(lab, "lb1") as status:
        figures = run(lab, status, options.pools, options.backends, options.patience)
    print(f"{options.pools:,} pools, {options.backends:,} backends: {figures}")
    is_good = figures.peak < figures.limit and max(figures.failovers) < MOST_SECONDS
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
