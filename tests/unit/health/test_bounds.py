# SPDX-License-Identifier: Apache-2.0
"""What bounds the work of probes: frames that are counted, descriptors that are shared."""

import os
import resource
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.health.grpc_health import _Frames
from tidegate.health.places import Places

PAYLOADS = st.lists(st.integers(0, 40), max_size=20)
CUTS = st.lists(st.integers(0, 1000), max_size=20)


@given(payloads=PAYLOADS, cuts=CUTS)
def test_frames_are_cut_where_they_end(payloads: list[int], cuts: list[int]) -> None:
    """However bytes arrive, none is lost, and no part has the end of more than one frame."""
    frames = [size.to_bytes(3) + bytes(6) + bytes(size) for size in payloads]
    data, counted, parts = b"".join(frames), _Frames(), []
    for begin, end in pairwise(sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})):
        parts += counted.split(data[begin:end])
    assert b"".join(parts) == data
    ends = {sum(map(len, frames[: n + 1])) for n in range(len(frames))}
    place = 0
    for part in parts:
        inside = {end for end in ends if place < end <= place + len(part)}
        place += len(part)
        assert inside in (set(), {place})


@pytest.fixture
def limit() -> Iterator[int]:
    """Give a limit of descriptors 100 above what is open, for the test's time."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd"))) + 101  # noqa: PTH208 - names are numbers
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, before[1]))
    yield top
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_sockets_are_kept_where_all_have_room(limit: int) -> None:
    """Those that stay are counted for good; where not all fit, each takes a place for a while."""
    places = Places()
    places.count(lasting=20, momentary=8, held=0)
    assert (places.limit, places.is_short) == (limit, False)
    assert 50 <= places.budget < limit
    assert places.has(places.budget - 20)
    assert not places.has(places.budget - 19)
    places.count(lasting=5000, momentary=8, held=0)
    assert places.is_short
    assert places.has(places.budget)
    places.take(places.budget)
    assert not places.has(1)
    places.give(places.budget)
    assert places.has(1)


@pytest.mark.usefixtures("limit")
def test_a_probe_that_wants_more_than_all_gets_all() -> None:
    """It would wait for ever otherwise; but it waits until nothing else is taken."""
    places = Places()
    places.count(lasting=0, momentary=8, held=0)
    assert places.has(places.budget + 8)
    places.take(1)
    assert not places.has(places.budget + 8)
