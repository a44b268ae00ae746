# SPDX-License-Identifier: Apache-2.0
"""Measures ratios of rows to prices, and compares them with the committed ones (`reference`)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from bench.dataplane import live, reference, report
from bench.dataplane.loaded import Loaded
from bench.dataplane.method import Bench, Case, Figure
from bench.dataplane.programs import Part
from bench.dataplane.reference import Outcome, Reference
from bench.dataplane.rows import ROWS
from bench.dataplane.stage import Stage

SAMPLES: Final = 7
SECONDS: Final = 20.0
WRITTEN_SAMPLES: Final = 31
WRITTEN_SECONDS: Final = 300.0
RETRY_SECONDS: Final = 4.0
SLOW: Final = 1.25
"""Times the fastest probe, up to which ratios hold; where a core is shared they do not."""


class RatioCase:
    """A row by its yardstick, whose prices are measured beside each sample."""

    def __init__(self, row: Case, beside: Sequence[Case]) -> None:
        self.name, self.yields = row.name, row.yields
        self._row, self._beside = row, beside

    def prepare(self) -> None:
        """Prepare the prices, then the row, so that the row finds the caches as it left them."""
        for case in (*self._beside, self._row):
            case.prepare()

    def difference(self) -> float:
        """Return the ratio."""
        value = self._row.difference()
        return value / sum(case.difference() for case in self._beside)

    def confirm(self) -> None:
        """Raise if the row's packets, or the prices', went another way."""
        for case in (*self._beside, self._row):
            case.confirm()


class Ratios:
    """Every row in both versions, to be measured in turn."""

    def __init__(self, bench: Bench, loaded: Loaded, stage: Stage) -> None:
        self._bench = bench
        prices = {case.name: case for case in loaded.prices()}
        floor, *on_wire = live.cases(stage, loaded.wire, loaded.part(Part.PUSH))
        self._cases = [
            *(
                RatioCase(case, [prices[p] for p in case.row.yardstick])
                for case in stage.cases(ROWS)
            ),
            *(RatioCase(case, [floor]) for case in on_wire),
        ]

    def measure(
        self, wanted: int, seconds: float, names: Collection[str] = ()
    ) -> dict[str, Figure]:
        """Return the ratios of the rows with these names, or of all."""
        cases = [case for case in self._cases if not names or case.name in names]
        return self._bench.measure(cases, wanted, seconds, SLOW)


def write(bench: Bench, loaded: Loaded, stage: Stage) -> int:
    """Write the file anew; return 1 if the machine was too busy for it."""
    figures = Ratios(bench, loaded, stage).measure(WRITTEN_SAMPLES, WRITTEN_SECONDS)
    noisy = [name for name, figure in figures.items() if not figure.is_clean]
    if noisy:
        print(f"not written: the machine was too slow for {', '.join(noisy)}")
        return 1
    ratios = {name: figure.median for name, figure in figures.items()}
    reference.write(Reference(report.machine(), bench.fastest, ratios))
    print(f"{reference.FILE.name}: {len(ratios)} ratios")
    return 0


def check(bench: Bench, loaded: Loaded, stage: Stage) -> int:
    """Compare with the file; return 1 if a row is worse, or the file has other rows."""
    known = reference.read()
    is_same = known.machine["cpu"] == report.machine()["cpu"]
    if is_same:
        bench.fastest = min(bench.fastest, known.fastest)
    else:
        print(f"the file is of another CPU ({known.machine['cpu']}): only much worse rows fail")
    measured = Ratios(bench, loaded, stage)
    ratios = measured.measure(SAMPLES, SECONDS)
    outcomes: dict[str, Outcome] = {}
    for attempt in range(1 + reference.RETRIES):
        outcomes |= {
            name: reference.judge(name, ratio, known, is_same_cpu=is_same)
            for name, ratio in ratios.items()
            if outcomes.get(name, Outcome.WORSE) is Outcome.WORSE
        }
        again = {name for name, outcome in outcomes.items() if outcome is Outcome.WORSE}
        if not again or attempt == reference.RETRIES:
            break
        ratios |= measured.measure(SAMPLES, RETRY_SECONDS, again)
    return verdict(outcomes, ratios, known)


def verdict(outcomes: Mapping[str, Outcome], ratios: Mapping[str, Figure], known: Reference) -> int:
    """Print each row; return 1 if one is worse, or the file has other rows."""
    print(f"{'ratio to the prices':48} {'now':>7} {'file':>7}")
    for name, outcome in outcomes.items():
        then = known.ratios.get(name, 0.0)
        print(f"{name:48} {ratios[name].median:7.2f} {then:7.2f}  {outcome}")
    gone = sorted(known.ratios.keys() - outcomes.keys())
    if gone:
        print(f"in the file and not measured: {', '.join(gone)}; renew it with --write")
    bad = [name for name, each in outcomes.items() if each in (Outcome.WORSE, Outcome.NEW)]
    if bad:
        print(f"{len(bad)} of {len(outcomes)} rows fail: ./dev bench dataplane shows them in ns")
    return 1 if bad or gone else 0
