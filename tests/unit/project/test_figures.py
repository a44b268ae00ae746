# SPDX-License-Identifier: Apache-2.0
"""Bounds and waits that the pages promise to operators are those of the code."""

import re
from pathlib import Path

import pytest

from tidegate.agent import clock, dead_man, long_work, plane_start, refusals
from tidegate.agent.config import AgentConfig, JournalTable
from tidegate.agent.operator import routes
from tidegate.agent.operator.socket import LIMITS
from tidegate.agent.readiness import announcer
from tidegate.dataplane.kernel import compiler
from tidegate.keyspace import bounds
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.status import document
from tidegate.model import constants
from tidegate.telemetry import log_format, log_output

DOCS = Path(__file__).resolve().parents[3] / "docs"
WORDS = {4: "four", 5: "five", 8: "eight"}
ETCD, JOURNAL = EtcdSettings(), JournalTable()
CONFIRM: float = AgentConfig.__struct_defaults__[
    AgentConfig.__struct_fields__[-len(AgentConfig.__struct_defaults__) :].index("confirm_delay")
]
ROOM = (
    f"{constants.MAX_VIPS - 1:,} VIPs",
    f"{constants.MAX_NETWORK_VIPS} of them networks, with {constants.MAX_ROUTES:,}",
    f"{constants.MAX_POOLS - 1:,} pools",
    f"{constants.MAX_BACKENDS - 1:,} backends",
)
SAYS = {
    "operations.md": (
        f"{WORDS[LIMITS.clients]} clients at once, {LIMITS.body >> 10} KiB of body",
        f"{LIMITS.asking_seconds:g} seconds until the request is there",
        f"{LIMITS.idle_seconds:g} seconds of silence and {LIMITS.longest_seconds:g} seconds in all",
        f"could not start within {routes.ANSWER_SECONDS:g} seconds",
        f"when etcd has answered {CONFIRM:g} s after",
        f"before that, and for {dead_man.PATIENCE:g} s",
        f"etcd has been back for {dead_man.RETURN:g} s",
        f"after {plane_start.FIRST_PAUSE:g} s at first and every {plane_start.LONGEST_PAUSE:g} s",
        f"the last {JOURNAL.generations:,} generations and at most {JOURNAL.bytes >> 20} MiB",
    ),
    "announce.md": (f"put back within {announcer.AGAIN_SECONDS:g} seconds",),
    "faults.md": (
        *ROOM,
        f"a program that is compiled has {compiler.LONGEST_COMPILATION:g} s besides",
        f"for {WORDS[int(long_work.LONGEST_SECONDS / 60)]} minutes at most",
        f"stepped by {clock.LEAST:g} s or more",
        f"at most {refusals.LINES} in {refusals.PERIOD:g} s",
        f"The status lists {document.MAX_REFUSALS} refusals",
    ),
    "keyspace.md": (
        *ROOM,
        f"{bounds.MAX_BYTES >> 10} KiB of each document",
        f"{bounds.STEERING.together >> 20} MiB and {bounds.STEERING.keys:,} keys of `tracks/`",
        f"{bounds.RELEASE.together >> 20} MiB of a release",
        f"({ETCD.backoff_max:g} seconds at most by default)",
        f"after {ETCD.stale_after:g} seconds without contact",
        f"after {ETCD.idle_probe:g} seconds and giving it up after {ETCD.silence_limit:g}",
        f"listing everything every {ETCD.relist_interval / 60:g} minutes",
        f"tried again every {ETCD.fatal_retry:g} seconds",
    ),
    "telemetry.md": (
        f"within a minute {WORDS[log_format.MOST]} are written",
        f"from a queue of {log_output.QUEUE_BYTES >> 20} MiB",
    ),
}


@pytest.mark.parametrize(("page", "sentence"), [(p, s) for p, each in SAYS.items() for s in each])
def test_pages_say_what_the_code_does(page: str, sentence: str) -> None:
    """A figure that changes here changes there, or this fails."""
    text = re.sub(r"\s+", " ", (DOCS / page).read_text("utf-8"))
    assert sentence in text


def test_figures_in_words_are_those_of_the_code() -> None:
    """An hour, a minute, a second."""
    assert constants.ID_COOLDOWN_SECONDS == 3600
    assert refusals.REMEMBERED == log_format.PERIOD == 60
    assert log_output.FLUSH_SECONDS == 1


def test_events_that_pages_name_are_logged() -> None:
    """Whoever searches the log for one may find it."""
    pages = "".join(page.read_text("utf-8") for page in DOCS.glob("*.md"))
    named = set(re.findall(r"event `([a-z_]+)`", pages)) | set(
        re.findall(r"\bevent=([a-z_]+)", pages)
    )
    package = DOCS.parent / "agent" / "tidegate"
    code = "".join(each.read_text("utf-8") for each in package.rglob("*.py"))
    assert len(named) > 10
    assert {name for name in named if f'"{name}"' not in code} == set()
