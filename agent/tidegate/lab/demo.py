# SPDX-License-Identifier: Apache-2.0
"""The demo: real connections through a real agent while everything about the backends changes.

It brings up a lab, writes keys with etcdctl as any control system would, and keeps score of what a
user would notice. Whatever it prints was observed in that run.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

from tidegate.errors import LabError
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.failure import kill_agent, kill_backend, revive_backend
from tidegate.lab.latency import measure
from tidegate.lab.load import Totals
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab
from tidegate.lab.roster import BACKENDS, WEIGHTS, Roster
from tidegate.lab.shares import compare
from tidegate.lab.stage import Stage
from tidegate.lab.traffic import Traffic, Trouble
from tidegate.lab.verdict import Change, Observed


class Pace(NamedTuple):
    """How much load, and how long: seconds, and connections a second of both clients together."""

    share_seconds: float
    share_rate: float
    rate: float
    between: float
    agent_away: float
    delays: int


FULL: Final = Pace(6, 300, 120, 1.0, 2.0, 20)
QUICK: Final = Pace(4, 400, 200, 0.35, 1.0, 8)

_DOWNLOADS: Final = 12
"""Per client and VIP."""
DOWNLOADS: Final = 4 * _DOWNLOADS
_DWELL: Final = 0.7


def run(name: str, pace: Pace, report: Callable[[str], None]) -> Observed:
    """Build a lab of this name, run all phases in it, and remove it.

    Args:
        name: of the lab.
        pace: FULL or QUICK.
        report: takes each line of progress.

    Raises:
        LabError: a phase could not be carried out.
        CapabilityError: the host lacks something.
    """
    began = time.monotonic()
    with Lab(LabSpec(name=name, backends=BACKENDS)) as lab, StatusWatch(lab, "lb1") as status:
        stage = Stage(lab, Roster(lab, Control(lab)), status, report, began)
        stage.say(f"rack built: router, 2 clients, 1 LB host, {BACKENDS} backends, etcd")
        _start(stage)
        first, troubles = _spread_connections(stage, pace)
        with Traffic(
            lab,
            list(stage.roster.targets.values()),
            rate=pace.rate,
            dwell=_DWELL,
            downloads=_DOWNLOADS,
        ) as traffic:
            observed = _under_load(stage, traffic, pace, first)
            return replace(observed, troubles=[*troubles, *traffic.troubles])


def _start(stage: Stage) -> None:
    agent = stage.lab.start_agent("lb1")
    last = stage.roster.write_first().revision
    try:
        seen = stage.status.wait(
            "its first generation",
            lambda now: now["generation_revision"] >= last and now["state"] == "synced",
            timeout=30,
        )
    except LabError as error:
        raise LabError(f"{error}\nthe agent's log ends with:\n{agent.tail()}") from error
    modes = ", ".join(f"{one['name']} {one['mode']}" for one in seen.status["interfaces"])
    generation = seen.status["generation"]
    stage.say(f"keys written with etcdctl; agent in sync at generation {generation} ({modes})")


def _spread_connections(stage: Stage, pace: Pace) -> tuple[Totals, list[Trouble]]:
    """Run phase 1: which backend gets how many connections."""
    stage.say(f"1. shares: {pace.share_rate:g} connections/s for {pace.share_seconds:g} s")
    targets = list(stage.roster.targets.values())
    with Traffic(stage.lab, targets, rate=pace.share_rate, seconds=pace.share_seconds) as traffic:
        totals = traffic.finish_by_itself(pace.share_seconds + 10)
    return totals, traffic.troubles


def _under_load(stage: Stage, traffic: Traffic, pace: Pace, first: Totals) -> Observed:
    """Run phases 2 to 5, with one load over them all."""
    traffic.wait(lambda now: now.downloads >= DOWNLOADS, 15, f"{DOWNLOADS} open downloads")
    stage.say(f"2. roster changes: {DOWNLOADS} downloads open, {pace.rate:g} new connections/s")
    resets, generation = stage.resets_sent(), stage.status.current()["generation"]
    changes = _change_roster(stage, traffic, pace)
    generations = stage.status.current()["generation"] - generation
    stage.say(f"3. delay of {pace.delays} changes, from put to the first packet")
    delays = measure(stage.lab, stage.roster, stage.status, pace.delays)
    stage.say("4. the agent dies")
    absence = kill_agent(stage, traffic, pace.agent_away)
    time.sleep(pace.between)
    stage.say(f"   {_score(traffic.totals())}")
    resets = stage.resets_sent() - resets
    stage.say("5. a backend dies")
    death = kill_backend(stage, pace.rate)
    revive_backend(stage)
    time.sleep(2 * pace.between)
    traffic.wait(lambda now: now.downloads >= DOWNLOADS, 15, f"{DOWNLOADS} downloads again")
    stage.say(f"   {_score(traffic.totals())}")
    main = traffic.finish()
    stage.say("load ended")
    targets = stage.roster.targets.values()
    return Observed(
        shares=[one for to in targets for one in compare(to, WEIGHTS, first.shares.get(to, {}))],
        first=first,
        main=main,
        troubles=(),
        changes=changes,
        generations=generations,
        delays=delays,
        absence=absence,
        death=death,
        calm_resets=resets,
        downloads=DOWNLOADS,
    )


def _change_roster(stage: Stage, traffic: Traffic, pace: Pace) -> list[Change]:
    """Run phase 2: one change after another, each in force before the next is written."""
    changes = []
    for planned in stage.roster.changes():
        written = stage.roster.apply(planned)
        seen = stage.status.wait_applied(written.revision)
        change = Change(
            f"{planned.pool}: {planned.text}",
            seen.status["generation"],
            round((seen.at - written.began) * 1e3, 1),
        )
        changes.append(change)
        stage.say(
            f"   generation {change.generation:<3} {change.text:44}"
            f"{change.put_to_status_ms:4.0f} ms   {_score(traffic.totals())}"
        )
        time.sleep(pace.between)
    return changes


def _score(totals: Totals) -> str:
    return (
        f"{totals.opened:,} opened, {totals.failed} failed, {totals.reset} reset, "
        f"{totals.moved} moved, {totals.downloads} downloads"
    )
