# SPDX-License-Identifier: Apache-2.0
"""Waves and criteria as people write them."""

import pytest

from tidegate.errors import ConfigError
from tidegate.model.rollout import CriteriaDocument
from tidegate.rollout.waves import parse_criteria, parse_wave, parse_waves


def test_waves_are_tracks_shares_and_numbers() -> None:
    """They stay as they were written, so that a status shows what was asked for."""
    assert parse_waves("canary, 3,12.5%,100%") == ("canary", "3", "12.5%", "100%")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("canary,25%", "the last wave must be 100%"),
        ("100%,canary", "the last wave must be 100%"),
        ("50%,25%,100%", "must go further"),
        ("3,2,100%", "must go further"),
        ("0%,100%", "more than 0%"),
        ("101%", "at most 100%"),
        ("0,100%", "at least one host"),
        ("", "is not a share"),
        ("can ary,100%", "is not a share"),
        ("-5%,100%", "is not a share"),
    ],
)
def test_other_waves_are_refused(text: str, part: str) -> None:
    """The refusal says what is wrong with them."""
    with pytest.raises(ConfigError, match=part):
        parse_waves(text)


@pytest.mark.parametrize(
    ("text", "hosts", "target"),
    [("25%", 4, 1), ("25%", 5, 2), ("100%", 7, 7), ("10%", 10, 1), ("3", 2, 2), ("3", 9, 3)],
)
def test_a_share_is_rounded_up(text: str, hosts: int, target: int) -> None:
    """A wave has at least one host, and never more than there are."""
    assert parse_wave(text).target(hosts) == target


def test_criteria_are_names_and_limits() -> None:
    """What is not named is not looked at."""
    found = parse_criteria("nack, digest,drops=0.1%,unhealthy=5%")
    assert found == CriteriaDocument(nack=True, digest=True, drops=0.1, unhealthy=5.0)
    assert parse_criteria("") == CriteriaDocument()


@pytest.mark.parametrize(
    "text", ["nak", "nack=1%", "drops", "drops=0.1", "drops=101%", "drops=-1%"]
)
def test_other_criteria_are_refused(text: str) -> None:
    """The refusal has what was written."""
    with pytest.raises(ConfigError, match=text):
        parse_criteria(text)
