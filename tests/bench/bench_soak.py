# SPDX-License-Identifier: Apache-2.0
"""A soak: 10,000 random key changes at 250 a second, with 200 VIPs and 2,000 backends.

Prints the figures, and fails if a change was neither in force nor refused by name, if the kernel
holds anything else than etcd's documents ask for, if the rate was below 200, or if the agent's
memory grew by more than MOST_GROWTH after the first 1,000 changes.
"""

import argparse
import sys

from soak.run import growth, soak

MOST_GROWTH = 8 << 10
"""KiB."""
LEAST_RATE = 200


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=250)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = soak(options.changes, options.rate, options.seed)
    memory = ", ".join(f"{kib / 1024:.1f}" for kib in report["memory"])
    grown = growth(report)
    p50, p99 = report["lag_p50"] * 1e3, report["lag_p99"] * 1e3
    print(
        f"{report['changes']:,} changes at {report['rate']:.0f}/s, {report['refused']:,} refused "
        f"by name, the others in force; {report['documents']:,} documents; no drift\n"
        f"put to applied: p50 {p50:.0f} ms, p99 {p99:.0f} ms; {report['generations']:,} "
        f"generations, {report['changes_per_generation']:.1f} changes each, planned in "
        f"{report['plan']:.0f} ms and published in {report['publish']:.0f} ms on average\n"
        f"agent: {report['cpu']:.2f} CPUs; log {report['log_lines']:,} lines, "
        f"{report['log_bytes'] / 1024:.0f} KiB; {report['statuses']:,} statuses\n"
        f"resident MiB at each 250 changes: {memory}\n"
        f"grown after the first 1,000: {grown / 1024:.1f} MiB (limit {MOST_GROWTH / 1024:.0f})"
    )
    return int(grown > MOST_GROWTH or report["rate"] < LEAST_RATE)


if __name__ == "__main__":
    sys.exit(main())
