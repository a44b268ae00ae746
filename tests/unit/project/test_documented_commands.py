# SPDX-License-Identifier: Apache-2.0
"""The commands in the docs, in the README and in each command's help are ones that there are."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from tidegate.cli.main import parse

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GROUPS = ("apply", "health", "override", "rollout", "validate", "plan")


def commands(text: str) -> list[str]:
    """The lines that run the command, without what a shell does around it."""
    return re.findall(r"^ {2,4}(?:[^\n]*(?:&&|\|) )?tidegate ([^\n|&>…]+)", text, re.MULTILINE)


def accept(line: str) -> None:
    """Fail with what the command line says if it does not know a command."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            parse(shlex.split(line, comments=True))
        except SystemExit as error:
            pytest.fail(f"tidegate {line}: exit code {error.code}: {said.getvalue()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_are_accepted(page: Path) -> None:
    """Groups, commands and options are spelled as the command line wants them."""
    for line in commands(page.read_text("utf-8")):
        accept(line)


@pytest.mark.parametrize("group", GROUPS)
def test_examples_in_the_help_are_accepted(group: str) -> None:
    """Each group has examples, and they can be run."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        parse([group, "--help"])
    assert ended.value.code == 0
    examples = commands(said.getvalue().split("examples:")[1])
    assert examples
    for line in examples:
        accept(line)


def test_enough_is_looked_at() -> None:
    """The search finds the commands that are known to be there, and would refuse another."""
    found = [line for page in PAGES for line in commands(page.read_text("utf-8"))]
    assert {"rollout", "apply", "override", "agent", "lab"} <= {line.split()[0] for line in found}
    with pytest.raises(pytest.fail.Exception, match="--wave-count"):
        accept("rollout start r2 --wave-count 3")
