# SPDX-License-Identifier: Apache-2.0
"""Steps of the agent's middle on a real data plane, where the kernel refuses half of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent.middle import Middle
from support.documents.keyspaces import WEB, vip
from tidegate.agent.journal import lines, replay

pytestmark = pytest.mark.root

MORE = WEB | {"pools/web/backends/b": {"address": "198.51.100.2"}, "vips/other": vip(last=2)}


@pytest.fixture
def middle(tmp_path: Path) -> Iterator[Middle]:
    built = Middle(tmp_path)
    yield built
    built.close()


def test_what_is_put_back_is_told_like_any_generation(middle: Middle) -> None:
    """The journal can make it again, says why it is there, and goes on from it."""
    assert middle.want(WEB, 1) == []
    good = middle.plane.publisher.in_force
    middle.refusals = 1
    (reason,) = middle.want(MORE, 2)
    back = middle.plane.publisher.in_force
    assert f"generation {back.number} is what was in force before" in reason
    assert (back.digest, back.number) == (good.digest, good.number + 2)
    assert [a.generation.number for a in middle.heard] == [good.number, back.number]
    assert middle.heard[-1].desired == middle.heard[0].desired
    assert middle.want(MORE, 2) == []  # the next attempt has no such failure
    there = middle.journal()
    numbers = [line.number for line in there if isinstance(line, lines.Step)]
    assert numbers == [good.number, back.number, back.number + 1]
    causes = [line.cause for line in there if isinstance(line, lines.Step)]
    assert [cause.kind for cause in causes] == ["keys", "rollback", "keys"]
    assert causes[1].what == "put back, as publishing had failed half way"
    told = [standing.line.digest for standing in replay.standings(there)]
    assert good.digest == back.digest == told[-2]
    assert told[-1] == middle.plane.publisher.in_force.digest


def test_a_step_of_the_clock_counts_once_where_something_is_put_back(middle: Middle) -> None:
    """Windows move with the clock in what is put back, and not again in what follows."""
    middle.want(WEB, 1)
    middle.want(MORE, 2)
    closes = middle.plane.publisher.in_force.pools["web"].table.windows[-1].closes_at
    middle.ahead += 3600
    middle.refusals = 1
    middle.want(WEB | {"pools/web/backends/c": {"address": "198.51.100.3"}}, 3)
    assert middle.heard[-1].stepped == 3600
    middle.want(MORE | {"vips/more": vip(last=3)}, 4)
    assert middle.heard[-1].stepped == 0
    windows = middle.plane.publisher.in_force.pools["web"].table.windows
    assert windows[1].closes_at == closes + 3600
