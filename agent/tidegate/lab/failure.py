# SPDX-License-Identifier: Apache-2.0
"""A backend that dies, and an agent that dies, under load.

A dying backend takes its own connections with it; no balancer can save them. What the demo shows is
that nobody else's are touched. A connection is the dead backend's if that backend had answered on
it, and it broke after the death. One that nobody had answered on yet is counted as its own only if
it was begun while the backend was dead and not yet quarantined, and there may be no more of these
than the backend's share of the connections begun in that time explains. Everything else that breaks
is a failed claim.
"""

import time
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

from tidegate.lab.load import PROGRESS_SECONDS
from tidegate.lab.roster import POOL4, POOL6
from tidegate.lab.shares import LIMIT
from tidegate.lab.stage import Stage
from tidegate.lab.traffic import Traffic, Trouble

VICTIM: Final = "b2"
UNNOTICED: Final = 1.0
"""Seconds for which the victim is dead and nobody has said so."""
GIVE_UP: Final = 6.0
"""Seconds in which the clients, who wait 5 for a silent server, give up what the death broke."""
_EARLY: Final = 0.25
"""Seconds before the cut in which a connection may have been begun and not answered yet."""


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a backend.

    Attributes:
        cut_at: when its link was cut, CLOCK_MONOTONIC seconds.
        quarantined_at: when its quarantine was seen in force in both pools.
        rate: connections that all clients begin in a second.
    """

    cut_at: float
    quarantined_at: float
    rate: float

    @property
    def seconds(self) -> float:
        """How long it was dead and not quarantined."""
        return self.quarantined_at - self.cut_at

    def of_victim(self, trouble: Trouble) -> bool:
        """Return whether its death explains this trouble."""
        if trouble.at < self.cut_at or trouble.began > self.quarantined_at:
            return False
        if trouble.backend is not None:
            return trouble.backend == VICTIM and trouble.how != "moved"
        return trouble.began >= self.cut_at - _EARLY

    def most_unanswered(self, share: float) -> int:
        """Return how many connections begun in that time this backend can have had at the most.

        The mean and LIMIT standard deviations of a binomial.
        """
        begun = self.rate * (self.seconds + _EARLY)
        return ceil(begun * share + LIMIT * sqrt(begun * share * (1 - share)))


def kill_backend(stage: Stage, rate: float) -> Death:
    """Cut a backend's link, quarantine it a second later, and wait for what that breaks.

    Raises:
        LabError: the quarantine is not applied.
    """
    stage.lab.set_link(VICTIM, up=False)
    cut_at = time.monotonic()
    stage.say(f"   link of {VICTIM} cut; no document changes for {UNNOTICED:g} s")
    time.sleep(UNNOTICED)
    for pool in (POOL4, POOL6):
        written = stage.roster.change(pool, VICTIM, state="quarantine")
        seen = stage.status.wait_applied(written.revision)
    stage.say(f"   {VICTIM} quarantined in both pools: generation {seen.status['generation']}")
    time.sleep(GIVE_UP)
    return Death(cut_at, seen.at, rate)


def revive_backend(stage: Stage) -> None:
    """Plug the victim in again and make it active in both pools.

    Raises:
        LabError: the change is not applied.
    """
    stage.lab.set_link(VICTIM, up=True)
    for pool in (POOL4, POOL6):
        written = stage.roster.change(pool, VICTIM, state="active")
        seen = stage.status.wait_applied(written.revision)
    stage.say(f"   {VICTIM} connected and active: generation {seen.status['generation']}")


@dataclass(frozen=True, slots=True)
class Absence:
    """What happened while the agent was gone.

    Attributes:
        before: generation when it was killed.
        after: generation that the next one reported first.
        following: generation of the first change after that.
        away: seconds from SIGKILL to the new agent's first report.
        completed: connections that ended well in that time, not counting its first second.
    """

    before: int
    after: int
    following: int
    away: float
    completed: int


def kill_agent(stage: Stage, traffic: Traffic, pause: float) -> Absence:
    """Kill the agent with SIGKILL, leave it dead, and start it again `pause` + 1 s later.

    Raises:
        LabError: the new one does not synchronise.
    """
    old = stage.status.current()
    killed_at = time.monotonic()
    stage.lab.agents["lb1"].kill()
    stage.say(f"   agent killed with SIGKILL at generation {old['generation']}")
    # What the clients report can be half a second old; from here on it was done without an agent.
    time.sleep(2 * PROGRESS_SECONDS)
    completed = traffic.totals().completed
    time.sleep(pause)
    completed = traffic.totals().completed - completed
    stage.lab.agents["lb1"].restart()
    seen = stage.status.wait(
        "a new agent in sync",
        lambda now: now["started_at"] != old["started_at"] and now["state"] == "synced",
        timeout=20,
    )
    generation = seen.status["generation"]
    stage.say(f"   another started, in sync at generation {generation}")
    change = stage.roster.change(POOL4, "b1", weight=120)
    after = stage.status.wait_applied(change.revision).status["generation"]
    stage.say(f"   a change after that: generation {after}")
    return Absence(old["generation"], generation, after, seen.at - killed_at, completed)
