# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the program against its specification: ./dev fuzz [--frames N] [--seed S].

Random documents, then random and damaged frames, then changed documents, and so on: after each
frame verdict and frame are compared, before each change every map and counter. A difference is made
small, printed, and written as a capture and a file of documents for `tidegate simulate`.

Every other session runs a program that can do what its documents use, as the agent builds it, and
the others one that can do everything.

Histories (`fuzz.history`) instead: ./dev fuzz --history [--packets N] [--seed S].
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from fuzz.documents import AGE, desired, draw, step
from fuzz.frames import Frames
from fuzz.history import PACKETS, histories
from fuzz.session import FIRST_SECOND, Session, Step
from support.packets.both import Judge
from support.packets.kernel import BUILD, LINK
from tidegate.dataplane.inspect.capture import Writer
from tidegate.model.features import ALL_FEATURES, Feature, features
from tidegate.model.generation import NOTHING
from tidegate.planner import plan
from tidegate.spec import Link, Result, State, Verdict, process

FRAMES: Final = 200_000
ANSWER: Final = "the balancer"
"""Who decided on a frame that answers a ping or says that a packet was too big."""
STEPS: Final = 6
STEP_FRAMES: Final = 600
"""Frames between two changes. A session's flows must fit the tables, which evict without order."""
_TRIALS: Final = 60  # attempts at a smaller reproduction, each on empty maps


@dataclass
class Difference:
    """What was found: how the two differ, what the program can do, the steps that lead there."""

    text: str
    features: frozenset[Feature]
    steps: list[Step]


@dataclass
class Report:
    """What a run did; `verdicts` counts what the specification said, drops by reason."""

    seed: int
    frames: int = 0
    specialised: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    difference: Difference | None = None

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0
        took = f"{self.seconds:.1f} s, {rate:,.0f} a second"
        lines = [
            f"seed {self.seed}: {self.frames:,} frames in {took}",
            f"  by a program for the documents in force: {self.specialised:,}",
        ]
        for title, counts in (("", self.verdicts), ("by ", self.decisions)):
            lines += [f"  {title + name:22} {n:>9,}" for name, n in counts.most_common()]
        return "\n".join(lines)


def specification(state: State, frame: bytes, interface: int, now: int) -> Result:
    """Run a frame through the specification."""
    return process(state, frame, interface, now)


def fuzz(frames: int, seed: int, judge: Judge = specification) -> Report:
    """Run until a number of frames or the first difference.

    Args:
        frames: how many.
        seed: the same gives the same frames.
        judge: the specification.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    report = Report(seed)
    began = time.monotonic()
    is_specialised = False
    while report.frames < frames and report.difference is None:
        steps = _steps(chance, vips=2 if is_specialised else 6)
        needed = _needed(steps) if is_specialised else ALL_FEATURES
        before = report.frames
        with Session(judge, needed) as session:
            found = _session(session, steps, chance, frames, report)
        if found:
            report.difference = Difference(found[0], needed, found[1])
        report.specialised += (report.frames - before) * is_specialised
        is_specialised = not is_specialised
        report.seconds = time.monotonic() - began
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{report.frames:,} frames ")
    if report.difference is not None:
        report.difference = smaller(report.difference, judge)
    return report


def _steps(chance: random.Random, vips: int) -> list[Step]:
    steps: list[Step] = []
    for number in range(STEPS):
        keys = step(chance, steps[-1].keys, vips) if steps else draw(chance, vips)
        while not any(key.startswith("vips/") for key in keys):
            keys = draw(chance, vips)
        steps.append(Step(keys, _link(chance, number), chance.choice([0, 0, AGE])))
    return steps


def _needed(steps: Sequence[Step]) -> frozenset[Feature]:
    """Return the features that a program needs for all of these steps."""
    found: frozenset[Feature] = frozenset()
    generation = NOTHING
    for second, each in enumerate(steps, FIRST_SECOND + 1):
        generation = plan(desired(each.keys), generation, second)
        found |= features(generation)
    return found


def _link(chance: random.Random, number: int) -> Link:
    """Return an interface; in the middle and at the end of a session it lacks a gateway."""
    lacking = {STEPS // 2: {"gateway4": None}, STEPS - 1: {"gateway6": None}}.get(number, {})
    return LINK._replace(mtu=chance.choice([1500, 1500, 1400]), **lacking)


def _session(
    session: Session, steps: list[Step], chance: random.Random, frames: int, report: Report
) -> tuple[str, list[Step]] | None:
    """Run a session; return how the two differ, and the steps until then."""
    for number, each in enumerate(steps, 1):
        session.install(each)
        source = Frames(chance, session.targets())
        fault = None
        for _ in range(min(STEP_FRAMES, frames - report.frames)):
            frame = source.draw()
            each.frames.append(frame)
            result, fault = session.send(frame)
            _count(report, result)
            if fault:
                break
        fault = fault or session.compare()
        if fault:
            return fault, steps[:number]
        if report.frames >= frames:
            break
    return None


def _count(report: Report, result: Result) -> None:
    report.frames += 1
    why = f" {result.reason.name.lower()}" if result.reason else ""
    report.verdicts[result.verdict.name + why] += 1
    if result.decision is not None:
        report.decisions[result.decision.name.lower()] += 1
    elif result.verdict is Verdict.TX:
        report.decisions[ANSWER] += 1


def trial(needed: frozenset[Feature], steps: Sequence[Step], judge: Judge) -> str | None:
    """Return how a new kernel and a new specification differ over these steps."""
    with Session(judge, needed) as session:
        for each in steps:
            session.install(each)
            for frame in each.frames:
                _, fault = session.send(frame)
                if fault:
                    return fault
            fault = session.compare()
            if fault:
                return fault
    return None


def smaller(found: Difference, judge: Judge) -> Difference:
    """Return the same difference with fewer steps and frames, if it shows with fewer."""
    last = found.steps[-1]
    every = [frame for each in found.steps for frame in each.frames]
    for steps in (
        [replace(last, age=0, frames=last.frames[-1:])],
        [replace(last, age=0)],
        [replace(last, age=0, frames=every)],
    ):
        fault = trial(found.features, steps, judge)
        if fault:
            return _fewer_frames(Difference(fault, found.features, steps), judge)
    return found


def _fewer_frames(found: Difference, judge: Judge) -> Difference:
    """Leave out ever smaller pieces of the one step's frames (delta debugging, Zeller 1999)."""
    frames = found.steps[0].frames
    size, trials = len(frames) // 2, 0
    while size and trials < _TRIALS:
        at = 0
        while at < len(frames) and trials < _TRIALS:
            fewer = frames[:at] + frames[at + size :]
            steps = [replace(found.steps[0], frames=fewer)]
            fault = trial(found.features, steps, judge)
            trials += 1
            if fault:
                frames, found = fewer, Difference(fault, found.features, steps)
            else:
                at += size
        size //= 2
    return found


def write(found: Difference, folder: Path) -> str:
    """Write a difference's files; return how to reproduce it."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("step-*"):
        old.unlink()
    last = found.steps[-1]
    can = " ".join(sorted(feature.name for feature in found.features))
    lines = [found.text, f"interface: {last.link}", f"the program can: {can}"]
    for number, each in enumerate(found.steps, 1):
        keys, capture = folder / f"step-{number}.json", folder / f"step-{number}.pcap"
        keys.write_text(json.dumps(each.keys, indent=1) + "\n")
        with Writer(capture) as writer:
            for n, frame in enumerate(each.frames, 1):
                writer.write(n, frame)
    if len(found.steps) == 1:
        network = f"--hash-seed {BUILD.hash_seed.decode()} --mtu {last.link.mtu}"
        addresses = f"--source4 {BUILD.source4} --source6 {BUILD.source6}"
        lines += [
            *(f"frame: {frame.hex()}" for frame in last.frames[-5:]),
            f"keys: {json.dumps(last.keys)}",
            f"{len(last.frames)} frames. Again, if one gateway for both families has it too:",
            f"  tidegate simulate --engine both --keys {keys} --in {capture} {network} {addresses}",
        ]
    else:
        lines += [f"It takes {len(found.steps)} changes of documents; all steps are in {folder}"]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the fuzzer; return 1 if it found a difference."""
    parser = argparse.ArgumentParser(
        prog="./dev fuzz", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--frames", type=int, default=FRAMES, help="default %(default)s")
    parser.add_argument("--history", action="store_true", help="run histories: what is promised")
    parser.add_argument("--packets", type=int, default=PACKETS, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument(
        "--out", type=Path, default=Path(".dev/fuzz"), help="where a difference is written"
    )
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    if options.history:
        told = histories(options.packets, seed)
        sys.stdout.write(f"{told}\n")
        return 1 if told.broken else 0
    report = fuzz(options.frames, seed)
    sys.stdout.write(f"{report}\n")
    if report.difference is None:
        return 0
    sys.stdout.write(f"DIFFERENCE\n{write(report.difference, options.out)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
