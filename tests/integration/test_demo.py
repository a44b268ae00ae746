# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it, with a real agent, from the command line to its exit code."""

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.lab import netns
from tidegate.lab.plan import STATE_ROOT


@pytest.mark.root
def test_every_claim_of_the_demo_holds() -> None:
    """`tidegate demo --quick --json` exits 0, judges every claim, and leaves nothing behind."""
    name = f"t{secrets.token_hex(4)}"
    run = subprocess.run(
        [sys.executable, "-m", "tidegate.cli.main", "demo", "--quick", "--json", "--name", name],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stderr + run.stdout
    document = json.loads(run.stdout)
    assert document["holds"] is True
    assert len(document["claims"]) == 16
    assert all(claim["holds"] for claim in document["claims"])
    assert document["totals"]["changes"]["opened"] > 1000
    assert "generation 25 " in run.stderr  # progress goes there
    assert netns.named(f"{name}-") == []
    assert not (STATE_ROOT / name).exists()
    assert list(Path("/sys/fs/bpf").glob(f"tidegate-{name}-*")) == []
