# SPDX-License-Identifier: Apache-2.0
"""The fuzzer of `./dev fuzz`, in small: 20,000 frames each time, of another seed each day."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuzz.run import ANSWER, fuzz, write
from support.packets.kernel import BUILD
from tidegate.cli.main import main
from tidegate.model.decision import Decision, Reason
from tidegate.spec import Result, State, Verdict, process

pytestmark = pytest.mark.root

UNREACHED = {
    Reason.NONE,
    # Every pool of documents in force has a table, and a test-run has 256 bytes of headroom.
    Reason.NO_TABLE,
    Reason.NO_HEADROOM,
    # It takes 10,000 answers or 1,000 errors in a second, more than the specification does in it.
    Reason.ECHO_LIMIT,
    Reason.ICMP_LIMIT,
}


def test_random_frames_and_documents() -> None:
    """Whatever arrives, under whatever documents: specification and kernel do the same."""
    seed = int(datetime.now(UTC).strftime("%Y%m%d"))
    report = fuzz(20_000, seed)
    if report.difference is not None:
        pytest.fail(f"{report}\n{write(report.difference, Path('.dev/fuzz'))}")
    sys.stdout.write(f"{report}\n")
    assert report.frames == 20_000
    assert report.specialised > 5_000
    # Frames that all pass, or are all dropped, would show nothing.
    assert report.verdicts["TX"] > 1_000, report
    assert report.verdicts["PASS"] > 1_000, report
    decisions = {decision.name.lower() for decision in Decision}
    assert report.decisions.keys() == {ANSWER, *decisions}, report
    reasons = {f"DROP {reason.name.lower()}" for reason in set(Reason) - UNREACHED}
    assert report.verdicts.keys() == {"TX", "PASS", *reasons}, report


def test_a_difference_is_found_and_made_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spec with a fault is caught; what is written is one frame, which can be simulated."""

    def faulty(state: State, frame: bytes, interface: int, now: int) -> Result:
        result = process(state, frame, interface, now)
        if result.verdict is Verdict.TX and len(result.frame) > 1000:
            return replace(result, frame=result.frame[:-1] + b"\xaa")
        return result

    report = fuzz(20_000, 1, faulty)
    assert report.difference is not None
    assert [len(step.frames) for step in report.difference.steps] == [1]
    text = write(report.difference, tmp_path)
    assert report.difference.steps[0].frames[0].hex() in text
    arguments = ["--keys", str(tmp_path / "step-1.json"), "--in", str(tmp_path / "step-1.pcap")]
    # The program and the real specification agree on that frame.
    seed = ["--hash-seed", BUILD.hash_seed.decode()]
    assert main(["simulate", "--engine", "both", "--json", *arguments, *seed]) == 0
    assert '"verdict": "TX"' in capsys.readouterr().out


def test_a_seed_gives_the_same_frames() -> None:
    """A run can be done again, so what is found can be looked at."""
    first, second = fuzz(500, 7), fuzz(500, 7)
    assert (first.verdicts, first.decisions) == (second.verdicts, second.decisions)


def test_the_command_says_what_it_did() -> None:
    """Seed, rate and histograms, and exit code 0."""
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.run", "--frames", "1000", "--seed", "5"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("seed 5: 1,000 frames in ")
    assert " TX " in done.stdout
    assert " PASS " in done.stdout
