# SPDX-License-Identifier: Apache-2.0
"""A program that is built for the documents in force does what one with everything does."""

import os
from dataclasses import replace

import pytest

from fuzz.documents import desired
from support.packets.both import Both
from support.packets.frames import tcp
from support.packets.kernel import BUILD
from tidegate.dataplane.kernel import programs
from tidegate.model.decision import Decision
from tidegate.model.features import ALL_FEATURES, Feature, features
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

VIP = {"address": "10.99.0.1", "port": 80, "protocol": "tcp"}
NEW = {"pools/new": {}, "pools/new/backends/b2": {"address": "10.1.0.2"}}


def test_a_draining_backend_is_reached_without_its_pool(both: Both) -> None:
    """No pool in force has GUE, but the flow's backend still takes nothing else."""
    old = {
        "pools/old": {"encapsulation": "gue"},
        "pools/old/backends/b1": {"address": "10.1.0.1"},
    }
    both.want(desired({**NEW, **old, "vips/www": {**VIP, "pool": "old"}}))
    before = both.send(tcp("A"))
    generation = both.want(desired({**NEW, "vips/www": {**VIP, "pool": "new"}}))
    build = replace(BUILD, features=features(generation))
    whole = both.kernel.program
    both.kernel.program = programs.load_balancer(programs.compile_balancer(build), both.kernel.maps)
    try:
        after = both.send(tcp("A"))
    finally:
        os.close(both.kernel.program)
        both.kernel.program = whole
    assert (after.verdict, after.decision) == (Verdict.TX, Decision.TRACKED)
    assert after.frame == before.frame


@pytest.mark.parametrize("left_out", list(Feature), ids=lambda feature: feature.name)
def test_no_set_of_features_is_too_much_for_the_verifier(both: Both, left_out: Feature) -> None:
    """Less source can be more work for it: a program without any one feature loads as well."""
    build = replace(BUILD, features=ALL_FEATURES - {left_out})
    os.close(programs.load_balancer(programs.compile_balancer(build), both.kernel.maps))
