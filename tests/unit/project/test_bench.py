# SPDX-License-Identifier: Apache-2.0
"""How the packet benchmark judges: which samples count, and when a row is worse than the file."""

from pathlib import Path

import pytest

from bench.dataplane import live, reference
from bench.dataplane.method import Bench, Figure, Sample, figure
from bench.dataplane.prices import PRICES
from bench.dataplane.reference import Outcome, Reference
from bench.dataplane.rows import ROWS, SCENES
from bench.dataplane.stage import VERSIONS

FILE = Reference({"cpu": "this one"}, 8.0, {"row": 2.0, "small": 0.1})


def measured(ratio: float, *, is_clean: bool = True) -> Figure:
    """Return a figure of seven samples."""
    return Figure(ratio, ratio, ratio, 7, is_clean)


@pytest.mark.parametrize(
    ("name", "ratio", "outcome"),
    [
        ("row", 1.0, Outcome.GOOD),
        ("row", 2.29, Outcome.GOOD),
        ("row", 2.31, Outcome.WORSE),
        ("small", 0.19, Outcome.GOOD),
        ("small", 0.21, Outcome.WORSE),
        ("other", 1.0, Outcome.NEW),
    ],
)
def test_a_row_is_worse_by_more_than_15_percent(name: str, ratio: float, outcome: Outcome) -> None:
    """Those that cost next to nothing by more than the prices vary."""
    assert reference.judge(name, measured(ratio), FILE, is_same_cpu=True) is outcome


def test_a_noisy_machine_fails_nothing() -> None:
    """A row that is worse is undecided if too few of its samples were taken at full speed."""
    slow, fast = measured(9.0, is_clean=False), measured(2.0, is_clean=False)
    assert reference.judge("row", slow, FILE, is_same_cpu=True) is Outcome.UNDECIDED
    assert reference.judge("row", fast, FILE, is_same_cpu=True) is Outcome.GOOD


def test_another_cpu_fails_what_is_much_worse() -> None:
    """Its prices have another proportion to each other."""
    assert reference.judge("row", measured(2.9), FILE, is_same_cpu=False) is Outcome.GOOD
    assert reference.judge("row", measured(3.1), FILE, is_same_cpu=False) is Outcome.WORSE


def test_samples_between_slow_probes_do_not_count() -> None:
    """If too few are left, the least slow of them stand in, and the figure says so."""
    fast = [Sample(10.0 + i, 8.0) for i in range(3)]
    slow = [Sample(30.0, 9.0), Sample(50.0, 12.0)]
    assert figure([*slow, *fast], 8.8) == Figure(11.0, 10.0, 12.0, 3, is_clean=True)
    assert figure([*slow, *fast[:2]], 8.8) == Figure(11.0, 10.0, 30.0, 3, is_clean=False)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """With ratios rounded to what is worth keeping."""
    path = tmp_path / "reference.json"
    reference.write(Reference({"cpu": "x"}, 7.5, {"row": 1.23456}), path)
    assert reference.read(path) == Reference({"cpu": "x"}, 7.5, {"row": 1.235})


def test_the_committed_file_has_every_row() -> None:
    """And none that is no longer measured: ./dev bench --check --write."""
    names = {f"{row.name} / {each}" for row in (*ROWS, *live.ROWS) for each in VERSIONS}
    assert reference.read().ratios.keys() == names


def test_a_row_names_a_scene_and_prices_that_there_are() -> None:
    """No name is there twice."""
    assert {row.scene for row in (*ROWS, *live.ROWS)} == SCENES.keys()
    assert {price for row in ROWS for price in row.yardstick} <= PRICES.keys()
    assert len({row.name for row in ROWS}) == len(ROWS)


class Slowing:
    """A case whose samples are all taken while the machine is slow."""

    name, yields = "slow", True

    def __init__(self) -> None:
        self.taken = 0

    def prepare(self) -> None:
        """Nothing."""

    def difference(self) -> float:
        """Return a figure like any other."""
        self.taken += 1
        return 5.0

    def confirm(self) -> None:
        """Nothing."""


def test_time_ends_what_never_runs_at_full_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case without enough samples has a figure all the same, and is marked."""
    monkeypatch.setattr(Bench, "_probe", lambda _: 20.0)
    bench = Bench(0)
    bench.fastest = 8.0
    case = Slowing()
    assert bench.measure([case], 5, 0.01)["slow"] == Figure(5.0, 5.0, 5.0, 3, is_clean=False)
    assert case.taken == 3
