# SPDX-License-Identifier: Apache-2.0
"""What a packet costs, by what it is and how many flows there are: `./dev bench dataplane`.

ns a packet of the loaded program, from test runs, less what the same loop takes around an empty
program, with the restoring of the frame in both (dataplane/method.py, dataplane/wrapper.c). Each
row is measured for the program that its documents need and for the one with all features, and is
held to the way that it names by the program's own counters. Figures of one machine compare with
those of another by the price list below them.

    ./dev bench dataplane                     all rows, the live ones too, and the price list
    ./dev bench dataplane --rows 'tracked'    rows whose name matches
    ./dev bench --check                       compares ratios to the prices with reference.json
    ./dev bench --check --write               writes that file anew
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.dataplane import check, live, prices, report, rows
from bench.dataplane.loaded import Loaded
from bench.dataplane.method import Bench, Case
from bench.dataplane.namespace import Namespace
from bench.dataplane.programs import Part
from bench.dataplane.stage import Stage, WrongPathError


@contextmanager
def on_one_cpu(cpu: int) -> Iterator[None]:
    """Keep this process on a CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure(bench: Bench, loaded: Loaded, stage: Stage, arguments: argparse.Namespace) -> int:
    """Print all tables; return 0."""
    wanted = [row for row in rows.ROWS if re.search(arguments.rows, row.name)]
    cases: list[Case] = [*loaded.prices(), loaded.floor(), *stage.cases(wanted)]
    on_wire = [] if arguments.no_live else live.cases(stage, loaded.wire, loaded.part(Part.PUSH))
    began = time.monotonic()
    figures = bench.measure([*cases, *on_wire], arguments.samples, arguments.seconds)
    machine = ", ".join(f"{key} {value}" for key, value in report.machine().items())
    print(f"{machine}; load average {os.getloadavg()[0]:.1f}")
    print(
        f"median (range of the middle 80 %) of {arguments.samples} samples at full speed, "
        f"{bench.fastest:.2f} ns a turn of the empty loop, in {time.monotonic() - began:.0f} s; "
        "~: fewer at full speed; !: not the goal\n"
    )
    print("\n".join([*report.rows(wanted, figures), "", *report.prices(figures)]))
    if on_wire:
        print("\n".join(["", *report.live_rows(figures)]))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Measure or compare, as the arguments say; return the exit code."""
    parser = argparse.ArgumentParser("./dev bench dataplane", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rows", default="", help="regular expression that names have to match")
    parser.add_argument("--samples", type=int, default=31, help="at full speed, of each row")
    parser.add_argument("--seconds", type=float, default=300, help="after which it makes do")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--no-live", action="store_true", help="without frames that really leave")
    parser.add_argument("--check", action="store_true", help="compare with reference.json")
    parser.add_argument("--write", action="store_true", help="with --check: write it anew")
    parsed = parser.parse_args(arguments)
    names = rows.LARGE + rows.MEDIUM if parsed.check else prices.PRICES
    loaded = Loaded(Namespace(), names)
    with on_one_cpu(parsed.cpu), Stage(loaded) as stage:
        bench = Bench(loaded.part(Part.EMPTY))
        try:
            if parsed.check:
                return (check.write if parsed.write else check.check)(bench, loaded, stage)
            return measure(bench, loaded, stage, parsed)
        except WrongPathError as error:
            print(f"a row does not measure what it names: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
