# SPDX-License-Identifier: Apache-2.0
"""How many slots a change of a pool moves, next to the minimum and to the bound that guards use.

Run it with `./dev bench disruption --seconds 60`. It makes random pools and
random changes until the time is over, and shows for changes of similar size the worst that it saw.
Where the bound comes from is in docs/maglev.md.
"""

import argparse
import random
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from tidegate import maglev
from tidegate.model.constants import TABLE_SIZE
from tidegate.model.generation import Slots

Pool = dict[int, int]
"""Weights by id."""

LARGEST = maglev.MAX_WEIGHT
WEIGHTS: dict[str, Callable[[random.Random], int]] = {
    "equal": lambda _: 100,
    "similar": lambda chance: chance.randint(90, 110),
    "mixed": lambda chance: chance.randint(1, 100),
    "wide": lambda chance: chance.randint(1, LARGEST),
    "logarithmic": lambda chance: int(2 ** chance.uniform(0, 15.99)),
    "giants": lambda chance: chance.choice([1, 1, 1, 1, 10, 100, LARGEST]),
}
REWEIGHT: dict[str, Callable[[int], int]] = {
    "1 % more": lambda weight: weight + max(1, weight // 100),
    "half": lambda weight: weight // 2,
    "double": lambda weight: weight * 2,
    "to 1": lambda _: 1,
    "to the largest": lambda _: LARGEST,
}
KINDS = ("remove", "add", "replace", "shuffle", *REWEIGHT)


def table(pool: Pool) -> Slots:
    """Return the pool's table as ids."""
    names = sorted((f"backend-{id_}", id_) for id_ in pool)
    ids = np.array([id_ for _, id_ in names], np.uint32)
    return ids[maglev.build([(name, pool[id_]) for name, id_ in names])]


def changed(pool: Pool, kind: str, count: int, chance: random.Random, weights: str) -> Pool:
    """Return the pool after a change of so many backends."""
    after = dict(pool)
    picked = chance.sample(sorted(pool), count)
    fresh = chance.sample(range(100_000, 1_000_000), count)
    if kind == "add":
        return after | {id_: WEIGHTS[weights](chance) for id_ in fresh}
    if kind == "shuffle":
        given = [pool[id_] for id_ in picked]
        chance.shuffle(given)
        return after | dict(zip(picked, given, strict=True))
    if kind in REWEIGHT:
        new = {id_: min(LARGEST, max(1, REWEIGHT[kind](pool[id_]))) for id_ in picked}
        return after | new
    for old, new_id in zip(picked, fresh, strict=True):
        weight = after.pop(old)
        if kind == "replace":
            after[new_id] = weight
    return after


def sample(chance: random.Random) -> tuple[str, maglev.Disruption]:
    """Return one change of one pool."""
    weights = chance.choice(list(WEIGHTS))
    count = round(2 ** chance.uniform(0, 11))
    pool = {id_: WEIGHTS[weights](chance) for id_ in chance.sample(range(100_000), count)}
    kind = chance.choice(KINDS)
    after = changed(pool, kind, max(1, round(count ** chance.uniform(0, 1))), chance, weights)
    if not after:
        return sample(chance)
    reweighted = [id_ for id_ in pool.keys() & after.keys() if pool[id_] != after[id_]]
    tables = table(pool), table(after)
    disruption = maglev.disruption(*tables, reweighted)
    if disruption.moved > disruption.bound:
        names = {id_: f"backend-{id_}" for id_ in pool.keys() | after.keys()}
        wider = disruption.bound + maglev.exchangeable(*tables, names)
        return kind, disruption._replace(bound=wider)
    return kind, disruption


def main() -> None:
    """Samples and shows the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long to sample")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # noqa: S311 - a workload, not a secret
    end = time.monotonic() + arguments.seconds
    found: defaultdict[str, list[maglev.Disruption]] = defaultdict(list)
    while time.monotonic() < end:
        kind, disruption = sample(chance)
        if disruption.bound:
            found[kind].append(disruption)
    above = sum(d.moved > d.bound for ds in found.values() for d in ds)
    print(f"{sum(map(len, found.values()))} changes, {above} above the bound, {TABLE_SIZE} slots")
    print(f"{'change':16s} {'number':>7s}   worst: moved   minimum     bound   moved/bound")
    for kind in KINDS:
        open_ended = [d for d in found[kind] if d.bound < TABLE_SIZE]
        worst = max(open_ended, key=lambda d: d.moved / d.bound)
        ratio = worst.moved / worst.bound
        numbers = f"{worst.moved:14d} {worst.minimum:9d} {worst.bound:9d} {ratio:13.2f}"
        print(f"{kind:16s} {len(found[kind]):7d} {numbers}")


if __name__ == "__main__":
    main()
