# SPDX-License-Identifier: Apache-2.0
"""As many pools as an agent takes, under the limits of its unit; `./dev bench fleet` has them all.

Here every pool has four backends, so that it takes no more than two minutes of two CPUs; the
benchmark has 65,535 backends.
"""

import pytest

from support.fleet.largest_run import run
from tidegate.lab.control import StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=6), pytest.mark.timeout(600)]

POOLS, BACKENDS = 1_023, 4_092


def test_a_large_fleet_runs_under_the_units_limits(bare_lab: Lab, status: StatusWatch) -> None:
    """It starts, changes all weights, takes servers out meanwhile, and is never ended for it."""
    figures = run(bare_lab, status, POOLS, BACKENDS, 300)
    print(figures)  # noqa: T201 - the figures that the page on faults has
    assert max(figures.failovers) < 5  # 0.6 s of it are the two probes
    assert figures.peak < figures.limit
    assert figures.silence < 20
