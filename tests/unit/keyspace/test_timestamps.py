# SPDX-License-Identifier: Apache-2.0
"""Times in documents become the same second on every host."""

import pytest

from tidegate.keyspace.documents.timestamps import parse_timestamp


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.999Z", "2026-01-31T12:00:00.1234567891Z"]
)
def test_fractions_of_a_second_do_not_count(text: str) -> None:
    """A moment is a whole second, rounded down."""
    assert parse_timestamp(text) == 1_769_860_800


@pytest.mark.parametrize(
    "text", ["2026-02-30T12:00:00Z", "2026-13-01T12:00:00Z", "2026-01-31T24:61:00Z"]
)
def test_days_that_no_calendar_has_are_refused(text: str) -> None:
    """What has the shape of a time and is none is named with its reason."""
    found = parse_timestamp(text)
    assert isinstance(found, str)
    assert found.startswith(f"is {text}, which is not a time: ")
