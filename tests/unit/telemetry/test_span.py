# SPDX-License-Identifier: Apache-2.0
"""W3C trace contexts: read, written, refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.telemetry.registry import Attribute, Instrument
from tidegate.telemetry.span import (
    Context,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)

EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # of the W3C's text


def test_reads_the_recommendations_example() -> None:
    """Trace id, parent id and the sampled flag are where the recommendation puts them."""
    assert parse_traceparent(EXAMPLE) == Context(
        0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_sampled=True
    )


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_reads_what_it_writes(trace_id: int, span_id: int, sampled: bool) -> None:
    """Every context survives being written and read."""
    context = Context(trace_id, span_id, sampled)
    assert parse_traceparent(format_traceparent(context)) == context


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a traceparent"),
        (EXAMPLE.upper(), "lower case"),
        (EXAMPLE + "\n", "not a traceparent"),
        (EXAMPLE[:-1], "not a traceparent"),
        (EXAMPLE.replace("4bf9", "٤bf9"), "not a traceparent"),  # not ASCII
        ("ff" + EXAMPLE[2:], "never ff"),
        (EXAMPLE + "-x", "ends after its flags"),
        ("00-" + 32 * "0" + EXAMPLE[35:], "all zeros"),
        (EXAMPLE[:36] + 16 * "0" + "-01", "all zeros"),
    ],
)
def test_refuses_what_is_none(text: str, reason: str) -> None:
    """A traceparent that the recommendation calls invalid is refused with a sentence."""
    with pytest.raises(ValueError, match=reason):
        parse_traceparent(text)


def test_later_versions_are_read_by_what_is_known_of_them() -> None:
    """Of a version that is not known the first four fields count, and unknown flags do not."""
    assert parse_traceparent("01" + EXAMPLE[2:-2] + "fe-more") == Context(
        0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_sampled=False
    )


def test_new_ids_are_valid_and_differ() -> None:
    """Two new contexts are two."""
    ids = {(new_trace_id(), new_span_id()) for _ in range(100)}
    assert len(ids) == 100
    assert all(0 < trace < 2**128 and 0 < span < 2**64 for trace, span in ids)


def test_names_of_our_own_have_our_prefix() -> None:
    """The registry refuses an own name without `tidegate.`, and a description that is none."""
    with pytest.raises(ValueError, match="begin with tidegate"):
        Attribute("vip", "string", "Name of the VIP.", "web")
    with pytest.raises(ValueError, match="begin with tidegate"):
        Attribute("tidegate.vip", "string", "Name of the VIP.", "web", is_standard=True)
    with pytest.raises(ValueError, match="sentence"):
        Instrument("tidegate.vip.packets", "counter", "{packet}", "packets")
