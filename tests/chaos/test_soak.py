# SPDX-License-Identifier: Apache-2.0
"""A small soak; the large one is tests/bench/bench_soak.py."""

import pytest

from soak.run import soak

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


def test_a_storm_of_changes_leaves_no_drift() -> None:
    """Each of 1,000 changes is in force or refused by name; the kernel holds what etcd asks for."""
    report = soak(1000, 200)
    assert report["refused"] > 20
    assert report["generations"] < report["changes"]
