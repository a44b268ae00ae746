# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the program against its specification: ./dev fuzz [--frames N] [--seed S].

Random documents, then random and damaged frames, then changed documents, and so on: after each
frame verdict and frame are compared, before each change every map and counter. A difference is made
small, printed, and written as a capture and a file of documents for `tidegate simulate`.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from fuzz_documents import Keys, desired, draw, step
from fuzz_frames import Frames, Target
from kernel import BUILD, LINK, Kernel, assert_equal, model
from tidegate.dataplane.capture import Writer
from tidegate.dataplane.simulation import SHORTEST
from tidegate.model.generation import NOTHING, Generation
from tidegate.planner import plan
from tidegate.spec import Result, State, process

Judge = Callable[[State, bytes, int], Result]

FRAMES: Final = 200_000
STEPS: Final = 6
STEP_FRAMES: Final = 400
"""Frames between two changes. A session's flows must fit the tables, which evict without order."""
_TRIALS: Final = 60  # attempts at a smaller reproduction, each on a new kernel: 5 to 10 a second
_INTERFACE: Final = 1


@dataclass
class Step:
    """Documents, and the frames that came while they were in force."""

    keys: Keys
    frames: list[bytes] = field(default_factory=list)


@dataclass
class Difference:
    """What was found: how the two differ, and the steps that lead there."""

    text: str
    steps: list[Step]


@dataclass
class Report:
    """What a run did; `verdicts` counts what the specification said, drops by reason."""

    seed: int
    frames: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    difference: Difference | None = None

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds else 0
        took = f"{self.seconds:.1f} s, {rate:,.0f} a second"
        lines = [f"seed {self.seed}: {self.frames:,} frames in {took}"]
        for title, counts in (("", self.verdicts), ("by ", self.decisions)):
            lines += [f"  {title + name:20} {n:>9,}" for name, n in counts.most_common()]
        return "\n".join(lines)


class Session:
    """A kernel and a model that are given the same steps, from `with` to its end."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._kernel = Kernel()
        self._state = model()
        self._generation: Generation = NOTHING
        self._second = 1000

    def __enter__(self) -> Self:
        self._kernel.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._kernel.__exit__(None, None, None)

    def install(self, keys: Keys) -> None:
        """Puts documents in force on both, a second after the ones before."""
        self._second += 1
        self._generation = plan(desired(keys), self._generation, self._second)
        self._kernel.install(self._generation)
        self._state.install(self._generation)

    def targets(self) -> list[Target]:
        """Where packets for the VIPs in force go."""
        numbers = {"tcp": 6, "udp": 17}
        return [
            Target(placed.vip.address, placed.vip.port, numbers[placed.vip.protocol])
            for placed in self._generation.vips.values()
        ]

    def send(self, frame: bytes) -> tuple[Result, str | None]:
        """What the specification says of a frame, and how the kernel differs."""
        expected = self._judge(self._state, frame, _INTERFACE)
        if len(frame) < SHORTEST:
            return expected, None
        try:
            verdict, out = self._kernel.run(frame)
        except OSError as error:
            return expected, f"the kernel refused to run it: {error}"
        if (verdict, out) == (expected.verdict, expected.frame):
            return expected, None
        return expected, (
            f"kernel: {verdict.name} {out.hex()}\n"
            f"model:  {expected.verdict.name} {expected.reason.name} {expected.frame.hex()}"
        )

    def compare(self) -> str | None:
        """How maps and counters differ."""
        try:
            assert_equal(self._kernel, self._state)
        except AssertionError as error:
            return f"maps or counters differ: {error or 'see assert_equal in tests/kernel.py'}"
        return None


def specification(state: State, frame: bytes, interface: int) -> Result:
    """What the specification says of a frame now."""
    return process(state, frame, interface, time.monotonic_ns())


def fuzz(frames: int, seed: int, judge: Judge = specification) -> Report:
    """Runs until a number of frames or the first difference.

    Args:
        frames: how many.
        seed: the same gives the same frames.
        judge: the specification.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    report = Report(seed)
    began = time.monotonic()
    while report.frames < frames and report.difference is None:
        with Session(judge) as session:
            _session(session, chance, frames, report)
        report.seconds = time.monotonic() - began
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{report.frames:,} frames ")
    if report.difference is not None:
        report.difference = smaller(report.difference, judge)
    return report


def _session(session: Session, chance: random.Random, frames: int, report: Report) -> None:
    steps: list[Step] = []
    for _ in range(STEPS):
        keys = step(chance, steps[-1].keys) if steps else draw(chance)
        while not any(key.startswith("vips/") for key in keys):
            keys = draw(chance)
        steps.append(Step(keys))
        session.install(keys)
        source = Frames(chance, session.targets())
        fault = None
        for _ in range(min(STEP_FRAMES, frames - report.frames)):
            frame = source.draw()
            steps[-1].frames.append(frame)
            result, fault = session.send(frame)
            _count(report, result)
            if fault:
                break
        fault = fault or session.compare()
        if fault:
            report.difference = Difference(fault, steps)
        if fault or report.frames >= frames:
            return


def _count(report: Report, result: Result) -> None:
    report.frames += 1
    why = f" {result.reason.name.lower()}" if result.reason else ""
    report.verdicts[result.verdict.name + why] += 1
    if result.decision is not None:
        report.decisions[result.decision.name.lower()] += 1


def trial(steps: Sequence[Step], judge: Judge) -> str | None:
    """How a new kernel and a new model differ over these steps."""
    with Session(judge) as session:
        for each in steps:
            session.install(each.keys)
            for frame in each.frames:
                _, fault = session.send(frame)
                if fault:
                    return fault
            fault = session.compare()
            if fault:
                return fault
    return None


def smaller(found: Difference, judge: Judge) -> Difference:
    """The same difference with fewer steps and frames, if it shows with fewer."""
    last = found.steps[-1]
    every = [frame for each in found.steps for frame in each.frames]
    for steps in (
        [Step(last.keys, last.frames[-1:])],
        [Step(last.keys, last.frames)],
        [Step(last.keys, every)],
    ):
        fault = trial(steps, judge)
        if fault:
            return _fewer_frames(Difference(fault, steps), judge)
    return found


def _fewer_frames(found: Difference, judge: Judge) -> Difference:
    """Leaves out ever smaller pieces of the one step's frames (delta debugging, Zeller 1999)."""
    keys, frames = found.steps[0].keys, found.steps[0].frames
    size, trials = len(frames) // 2, 0
    while size and trials < _TRIALS:
        at = 0
        while at < len(frames) and trials < _TRIALS:
            fewer = frames[:at] + frames[at + size :]
            fault = trial([Step(keys, fewer)], judge)
            trials += 1
            if fault:
                frames, found = fewer, Difference(fault, [Step(keys, fewer)])
            else:
                at += size
        size //= 2
    return found


def write(found: Difference, folder: Path) -> str:
    """Writes a difference's files, and returns what a person has to know."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("step-*"):
        old.unlink()
    lines = [found.text]
    for number, each in enumerate(found.steps, 1):
        keys, capture = folder / f"step-{number}.json", folder / f"step-{number}.pcap"
        keys.write_text(json.dumps(each.keys, indent=1) + "\n")
        with Writer(capture) as writer:
            for n, frame in enumerate(each.frames, 1):
                writer.write(n, frame)
    last = found.steps[-1]
    if len(found.steps) == 1:
        network = f"--hash-seed {BUILD.hash_seed.decode()} --mtu {LINK.mtu}"
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
    """Runs the fuzzer; 1 if it found a difference."""
    parser = argparse.ArgumentParser(
        prog="./dev fuzz", description=(__doc__ or "").split("\n\n")[1]
    )
    parser.add_argument("--frames", type=int, default=FRAMES, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument(
        "--out", type=Path, default=Path(".dev/fuzz"), help="where a difference is written"
    )
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    report = fuzz(options.frames, seed)
    sys.stdout.write(f"{report}\n")
    if report.difference is None:
        return 0
    sys.stdout.write(f"DIFFERENCE\n{write(report.difference, options.out)}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
