# SPDX-License-Identifier: Apache-2.0
"""How long a Maglev table takes to build, here and in the ways that were not chosen.

Run it with `./dev bench maglev`. Every way builds the same table, which is
checked before it is timed; all are timed in one run on one machine, so their ratios hold where the
milliseconds do not. numba is measured if the interpreter has it; it is no dependency of Tidegate.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from tidegate import maglev
from tidegate.maglev import construction
from tidegate.model.constants import TABLE_SIZE

Backends = list[tuple[str, int]]


def pools(count: int) -> dict[str, Backends]:
    """Pools of the kinds that differ in cost: equal, mixed, and one giant among dwarfs."""
    rng = random.Random(65537)  # noqa: S311 - a workload, not a secret
    names = [f"backend-{i:04d}" for i in range(count)]
    return {
        "equal": [(name, 100) for name in names],
        "mixed": [(name, rng.randint(1, 65535)) for name in names],
        "one giant": [(name, 65535 if i == 0 else 1) for i, name in enumerate(names)],
    }


def order_of_turns(weight: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Owners by the time of their turns."""
    owner = np.repeat(np.arange(len(turns)), turns)
    k = np.arange(len(owner)) - np.repeat(np.cumsum(turns) - turns, turns)
    return owner[np.argsort(((2 * k + 1) << 40) // weight[owner], kind="stable")]


def play_one_by_one(
    order: np.ndarray, offset: np.ndarray, skip: np.ndarray, size: int
) -> np.ndarray:
    """Return the paper's loop, for the plain interpreter and for numba."""
    table = np.full(size, -1, np.int64)
    at = offset.copy()
    for i in range(size):
        owner = order[i]
        slot = at[owner]
        while table[slot] >= 0:
            slot += skip[owner]
            if slot >= size:
                slot -= size
        table[slot] = owner
        at[owner] = slot
    return table


def play_in_rounds(
    order: np.ndarray, offset: np.ndarray, skip: np.ndarray, size: int
) -> np.ndarray:
    """Build it with numpy alone: turns of different owners ask at once, and the earliest wins.

    A turn that loses its slot to an earlier one asks for its owner's next slot (deferred
    acceptance), which ends where the turns one after another would.
    """
    table = np.full(size, -1, np.int64)
    holder = np.full(size, size, np.int64)  # the turn that has the slot; `size` is none
    at = offset.astype(np.int64)
    start = 0
    while start < size:
        block = distinct_run(order, start)
        asking = np.arange(start, start + len(block))
        while len(asking):
            owners = order[asking]
            slots = at[owners]
            before = holder[slots]
            np.minimum.at(holder, slots, asking)
            lost = asking[holder[slots] != asking]
            displaced = np.unique(before[(before >= start) & (before != holder[slots])])
            asking = np.union1d(lost, displaced[displaced < size])
            losers = order[asking]
            at[losers] = (at[losers] + skip[losers]) % size
        table[at[block]] = block
        start += len(block)
    return table


def distinct_run(order: np.ndarray, start: int) -> np.ndarray:
    """Return the longest run of turns from `start` in which no owner comes twice."""
    seen: set[int] = set()
    for i in range(start, len(order)):
        if int(order[i]) in seen:
            return order[start:i]
        seen.add(int(order[i]))
    return order[start:]


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median of some runs."""
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def with_loop(loop: Callable[..., np.ndarray], backends: Backends) -> np.ndarray:
    """Return a whole build, with `loop` in place of the C extension."""
    ordered = sorted(backends)
    weight = np.array([weight for _, weight in ordered], np.int64)
    offset, skip = construction.permutations([name for name, _ in ordered], TABLE_SIZE)
    turns = construction._turns(weight, TABLE_SIZE).astype(np.int64)
    order = order_of_turns(weight, turns)
    return loop(order, offset.astype(np.int64), skip.astype(np.int64), TABLE_SIZE)


def numba_loop() -> Callable[..., np.ndarray] | None:
    """Return the loop compiled by numba and print what that cost; None without numba."""
    began = time.perf_counter()
    try:
        import numba  # noqa: PLC0415 - optional, and its import time is one of the figures
    except ImportError:
        print("numba: not installed in this interpreter, not measured")
        return None
    imported = time.perf_counter()
    loop: Callable[..., np.ndarray] = numba.njit(play_one_by_one)
    with_loop(loop, [("a", 1)])
    print(
        f"numba {numba.__version__}: import {imported - began:.2f} s, "
        f"first call {time.perf_counter() - imported:.2f} s"
    )
    return loop


def compare(
    label: str, backends: Backends, ways: dict[str, tuple[Callable[..., np.ndarray], int]]
) -> None:
    """One pool, every way."""
    table = maglev.build(backends)
    chosen = milliseconds(lambda: maglev.build(backends), 50)
    print(f"{label:24s} {'C extension':12s} {chosen:9.2f} ms")
    for name, (loop, repeats) in ways.items():
        if not np.array_equal(with_loop(loop, backends), table):
            raise SystemExit(f"{name} builds another table")
        took = milliseconds(lambda loop=loop: with_loop(loop, backends), repeats)
        print(f"{label:24s} {name:12s} {took:9.2f} ms  {took / chosen:7.1f} x")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", type=int, nargs="*", default=[10, 1000])
    chosen = parser.parse_args(arguments)
    jitted = numba_loop()
    ways = {"plain loop": (play_one_by_one, 1), "numpy": (play_in_rounds, 1)}
    if jitted is not None:
        ways["numba"] = (jitted, 20)
    for count in chosen.backends:
        for kind, backends in pools(count).items():
            compare(f"{count} backends, {kind}", backends, ways)
    names = [name for name, _ in pools(1000)["equal"]]
    hashing = milliseconds(lambda: construction.permutations(names, TABLE_SIZE), 50)
    print(f"of which hashing 1000 names {hashing:.2f} ms")
    before = maglev.build(pools(1000)["equal"])
    took = milliseconds(lambda: maglev.disruption(before, before), 50)
    print(f"measuring a table's disruption {took:.2f} ms")


if __name__ == "__main__":
    main()
