# SPDX-License-Identifier: Apache-2.0
"""What an agent that reads events hands on: all that was asked for, or how much is missing."""

import numpy as np

from support.packets.flow_events import FlowEvent, records
from tidegate.agent.traces.flow_tap import HEAD, FlowTap
from tidegate.dataplane.kernel import layout
from tidegate.http_server import Request
from tidegate.model.decision import EventKind


def batch(first: int, count: int) -> np.ndarray:
    return records(FlowEvent(EventKind.NEW, port=first + i) for i in range(count))


def ask(tap: FlowTap, **query: str) -> tuple[int, int, int, list[int]]:
    """Return position, missed, lost, and the ports of the events in an answer."""
    body = tap.answer(Request(query, b"", "somebody")).encoded()
    events = np.frombuffer(body, layout.EVENT, offset=HEAD.size)
    return (*HEAD.unpack_from(body), events["source_port"].tolist())


def test_a_client_gets_all_that_came_since_its_first_request() -> None:
    """Each answer says where the next one goes on, whatever the batches."""
    tap = FlowTap()
    tap.put(batch(0, 5), 3)
    assert ask(tap) == (5, 0, 3, [])
    tap.put(batch(5, 2), 3)
    tap.put(batch(7, 1), 4)
    assert ask(tap, after="5") == (8, 0, 4, [5, 6, 7])
    assert ask(tap, after="6") == (8, 0, 4, [6, 7])
    assert ask(tap, after="8") == (8, 0, 4, [])


def test_without_interest_nothing_is_kept() -> None:
    """A client that left costs nothing, and one that was away gets the count of what it missed."""
    now = 100.0
    tap = FlowTap(lambda: now)
    ask(tap)
    tap.put(batch(0, 5), 0)
    now = 120.0
    tap.put(batch(5, 5), 0)
    assert ask(tap, after="0") == (10, 10, 0, [])


def test_what_is_kept_is_bounded() -> None:
    """A client that is too slow misses the oldest, and gets the count of them."""
    tap = FlowTap()
    ask(tap)
    size = (1 << 20) // layout.EVENT.itemsize
    for i in range(6):
        tap.put(np.repeat(batch(i, 1), size), 0)
    position, missed, _, events = ask(tap, after="0")
    assert missed == 2 * size
    assert events == [2] * size
    assert position == 3 * size
    assert ask(tap, after=str(position))[3] == [3] * size


def test_a_question_that_makes_no_sense_is_refused() -> None:
    """And one from beyond the end is one from now on, as after a restart of the agent."""
    tap = FlowTap()
    assert tap.answer(Request({"after": "x"}, b"", "somebody")).status == 400
    assert ask(tap, after="1000")[:2] == (0, 0)
