# SPDX-License-Identifier: Apache-2.0
"""Votes that are counted as they come lead to the same opinion as all of them at once."""

from hypothesis import given
from hypothesis import strategies as st

from tidegate.health.poll import Poll
from tidegate.health.verdict import opinion
from tidegate.model.health import Vote
from tidegate.model.values import BackendKey

Change = tuple[str, BackendKey, Vote | None]
VOTES = st.none() | st.builds(Vote, st.booleans(), st.integers(0, 5), st.booleans())
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["h1", "h2", "h3", "h4"]),
        st.sampled_from([BackendKey("web", f"b{n}") for n in range(6)]),
        VOTES,
    ),
    max_size=60,
)


@given(st.lists(CHANGES, max_size=5))
def test_a_poll_is_the_opinion_of_all_votes(
    turns: list[list[Change]],
) -> None:
    """After each of any changes, whoever is blind by them."""
    poll = Poll()
    votes: dict[str, dict[BackendKey, Vote]] = {}
    for turn in turns:
        for host, key, vote in turn:
            poll.put(host, key, vote)
            votes.setdefault(host, {}).pop(key, None)
            if vote is not None:
                votes[host][key] = vote
        cast = {host: mine for host, mine in votes.items() if mine}
        assert poll.opinion() == opinion(cast)
        assert poll.votes == cast
