# SPDX-License-Identifier: Apache-2.0
"""`./dev bench --check`: no row costs more, measured by this machine's prices, than it did.

A row's ratio is its ns divided by the sum of its yardstick's prices. Row and prices are measured
within some milliseconds of each other, so a machine that is slower for a while is so in both. A row
fails if its ratio is WORSE times the committed one. So that a noisy machine fails nothing:

* a sample counts only if probes before and after it were fast (`method`), on a CPU as in the file
  by the file's probe: where a core is shared with another thread, ratios are up to a quarter worse;
* the ratio is the median of several samples, and rows that cost next to nothing have a SLACK;
* a row that is worse is measured anew, up to RETRIES times, and fails if it is worse each time;
* if too few samples count, the row is undecided, which is said and fails nothing.

Ratios carry over to machines like the one that the file was written on. On another CPU they are
compared all the same, but only ELSEWHERE times worse is a failure there.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from bench.dataplane.method import Figure

FILE: Final = Path(__file__).parents[1] / "reference.json"
WORSE: Final = 1.15
ELSEWHERE: Final = 1.5
SLACK: Final = 0.1
"""In yardsticks, which are some 20 ns."""
RETRIES: Final = 4


class Reference(msgspec.Struct, frozen=True):
    """What was measured when the file was written: machine, fastest probe in ns, ratios by row."""

    machine: dict[str, str]
    fastest: float
    ratios: dict[str, float]


class Outcome(StrEnum):
    """What a comparison says of a row."""

    GOOD = "ok"
    WORSE = "WORSE"
    UNDECIDED = "undecided: the machine was slow"
    NEW = "not in the file: write it with --write"


def limit(reference: float, *, is_same_cpu: bool) -> float:
    """Return the largest ratio that does not fail."""
    return max(reference * (WORSE if is_same_cpu else ELSEWHERE), reference + SLACK)


def judge(name: str, ratio: Figure, reference: Reference, *, is_same_cpu: bool) -> Outcome:
    """Compare a row with the file."""
    if name not in reference.ratios:
        return Outcome.NEW
    if ratio.median <= limit(reference.ratios[name], is_same_cpu=is_same_cpu):
        return Outcome.GOOD
    return Outcome.WORSE if ratio.is_clean else Outcome.UNDECIDED


def read(path: Path = FILE) -> Reference:
    """Read the committed file."""
    return msgspec.json.decode(path.read_bytes(), type=Reference)


def write(reference: Reference, path: Path = FILE) -> None:
    """Write the file anew."""
    ratios = {name: round(value, 3) for name, value in reference.ratios.items()}
    fastest = round(reference.fastest, 2)
    content = {"machine": reference.machine, "fastest": fastest, "ratios": ratios}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
