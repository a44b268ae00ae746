# SPDX-License-Identifier: Apache-2.0
"""Parts of the agent that may fail without ending it."""

import errno

import pytest

from tidegate.agent.beside import RETRY_SECONDS, Beside
from tidegate.errors import DataplaneError, FenceError


class Part:
    """Work that fails as long as it is told to."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.runs = 0

    def __call__(self) -> None:
        """Do it."""
        self.runs += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), DataplaneError("x"), MemoryError()]
)
def test_what_fails_is_named_and_tried_again(error: Exception) -> None:
    """Not before a second has passed, however often the loop turns; then all is well again."""
    now = [100.0]
    beside, part, other = Beside(lambda: now[0]), Part(error), Part(None)
    for _ in range(5):
        beside.run("audit", part)
        beside.run("sweep", other)
    assert (part.runs, other.runs) == (1, 5)
    (problem,) = beside.problems
    assert problem.startswith(f"audit: {type(error).__name__}")
    now[0] += RETRY_SECONDS
    part.error = None
    beside.run("audit", part)
    assert (part.runs, beside.problems) == (2, [])


def test_what_fails_delays_nothing_else() -> None:
    """It waits for its next try itself, and what is due beside it, such as health, does not."""
    beside = Beside(lambda: 100.0)
    beside.run("audit", Part(OSError(errno.EMFILE, "Too many open files")))
    assert beside.due("audit", 99.0) == 100.0 + RETRY_SECONDS
    assert beside.due("audit", 105.0) == 105.0
    assert beside.due("sweep", 100.1) == 100.1


def test_a_plane_that_is_anothers_ends_the_agent() -> None:
    """It must not write any more, whoever found out."""
    with pytest.raises(FenceError):
        Beside().run("audit", Part(FenceError("it is another agent's")))
