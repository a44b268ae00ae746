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


def test_what_is_owed_is_done_until_it_succeeds() -> None:
    """Once, and not before a second has passed since it failed; only the last of a part counts."""
    now = [100.0]
    beside, stale, part = Beside(lambda: now[0]), Part(None), Part(OSError(errno.EMFILE, "none"))
    beside.owe("probes", stale)
    beside.owe("probes", part)
    for _ in range(3):
        beside.settle()
    assert (stale.runs, part.runs, beside.owed_at) == (0, 1, 100.0 + RETRY_SECONDS)
    now[0] += RETRY_SECONDS
    part.error = None
    for _ in range(3):
        beside.settle()
    assert (part.runs, beside.owed_at, beside.problems) == (2, None, [])


def test_only_the_parts_that_are_named_settle() -> None:
    """In the middle of a change verdicts may be given, and nothing that touches the data plane."""
    beside, verdicts, reload = Beside(), Part(None), Part(None)
    beside.owe("verdicts", verdicts)
    beside.owe("reload", reload)
    beside.settle("verdicts")
    assert (verdicts.runs, reload.runs) == (1, 0)
    beside.settle()
    assert (verdicts.runs, reload.runs) == (1, 1)


def test_what_cannot_wait_is_tried_though_it_has_just_failed() -> None:
    """A generation is written to the journal when it comes into force, or never."""
    beside, part = Beside(lambda: 100.0), Part(OSError(errno.ENOSPC, "No space left on device"))
    for _ in range(3):
        assert beside.once("journal", part) is None
    assert part.runs == 3
    assert beside.fails("journal") == "journal: OSError: [Errno 28] No space left on device"
    part.error = None
    beside.once("journal", part)
    assert beside.fails("journal") == ""


def test_what_is_owed_may_be_settled_within_other_work() -> None:
    """The loop ejects, and gives verdicts, while probes are told of another generation."""
    beside, verdicts = Beside(), Part(None)

    def probes() -> None:
        beside.settle("verdicts")
        beside.owe("probes", later)

    later = Part(None)
    beside.owe("probes", probes)
    beside.owe("verdicts", verdicts)
    beside.settle()
    assert (verdicts.runs, later.runs) == (1, 0)
    beside.settle()
    assert (verdicts.runs, later.runs) == (1, 1)
