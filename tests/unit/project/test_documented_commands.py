# SPDX-License-Identifier: Apache-2.0
"""The commands in the docs, in the README and in each command's help are ones that there are.

In the docs they stand in blocks, and between backticks in sentences and tables.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from tidegate.cli.main import parse

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
HELPED = (
    "agent run",
    "apply",
    "decap",
    "events",
    "freeze",
    "health",
    "history",
    "history owner",
    "override",
    "plan",
    "rollback",
    "rollout",
    "simulate",
    "validate",
)
"""Commands whose help has a list of examples."""


def name(page: Path) -> str:
    """Name of a page as a test's id."""
    return str(page.relative_to(ROOT))


def in_blocks(text: str, program: str) -> list[str]:
    """Return the lines that run a program, without what a shell does around it."""
    pattern = rf"^ {{2,4}}(?:[^\n]*(?:&&|\|) )?{re.escape(program)} ([^\n|&>…]+)"
    return re.findall(pattern, text, re.MULTILINE)


def in_backticks(text: str, program: str) -> list[str]:
    """Return the same between backticks: in sentences, and in the cells of tables."""
    return re.findall(rf"`{re.escape(program)} ([^`\n]+)`", text)


def complaint(line: str) -> str:
    """Return what the command line says if it does not know a command; empty if it does."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parse(shlex.split(line, comments=True))
        except SystemExit as error:
            return f"exit code {error.code}: {said.getvalue()}" if error.code else ""
    return ""


def refusal(line: str) -> str:
    """Return the complaint about a command that is only named, so may lack what it needs."""
    said = complaint(re.split(r"[|&>…]", line)[0])
    return "" if "arguments are required" in said else said


def accept(line: str) -> None:
    """Fail with what the command line says if it does not know a command."""
    said = complaint(line)
    if said:
        pytest.fail(f"tidegate {line}: {said}")


def unknown_to_dev(line: str) -> str:
    """Return why ./dev would not do what a page says; empty if it would."""
    command, *rest = shlex.split(line.replace("…", ""), comments=True)
    script = (ROOT / "dev").read_text("utf-8")
    accepted = script.split("if command not in {")[1].split("}")[0]
    if f'"{command}"' not in accepted:
        return f"no command {command}"
    if command == "test":
        paths = [each for each in rest if each.startswith("tests/")]
        return "".join(f"no {each}" for each in paths if not (ROOT / each).exists())
    if command == "bench" and rest:
        bench = "dataplane" if rest[0] == "--check" else rest[0]
        file = ROOT / f"tests/bench/bench_{bench}.py"
        if not file.exists():
            return f"no benchmark {bench}"
        options = [each for each in rest if each.startswith("--")]
        return "".join(f"no {each}" for each in options if f'"{each}"' not in file.read_text())
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_the_docs_are_accepted(page: Path) -> None:
    """Groups, commands and options are spelled as the command line wants them."""
    text = page.read_text("utf-8")
    for line in in_blocks(text, "tidegate"):
        accept(line)
    assert {line: refusal(line) for line in in_backticks(text, "tidegate") if refusal(line)} == {}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_scripts_commands_in_the_docs_are_there(page: Path) -> None:
    """So are the benchmarks, their options, and the tests that ./dev is to run."""
    text = page.read_text("utf-8")
    lines = [*in_blocks(text, "./dev"), *in_backticks(text, "./dev")]
    assert {line: unknown_to_dev(line) for line in lines if unknown_to_dev(line)} == {}


@pytest.mark.parametrize("command", HELPED)
def test_examples_in_the_help_are_accepted(command: str) -> None:
    """Each command has examples of its own, and they can be run."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        parse([*command.split(), "--help"])
    assert ended.value.code == 0
    examples = in_blocks(said.getvalue().split("examples:")[1], "tidegate")
    assert examples
    for line in examples:
        accept(line)
    assert examples[0].startswith(command)


def test_enough_is_looked_at() -> None:
    """The search finds the commands that are known to be there, and would refuse another."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    found = [*in_blocks(text, "tidegate"), *in_backticks(text, "tidegate")]
    assert {"rollout", "apply", "override", "agent", "lab", "events"} <= {
        line.split()[0] for line in found
    }
    assert "bench flood" in in_backticks(text, "./dev")
    with pytest.raises(pytest.fail.Exception, match="--wave-count"):
        accept("rollout start r2 --wave-count 3")
    assert refusal("lab upp")
    assert unknown_to_dev("bench no_such") == "no benchmark no_such"
    assert unknown_to_dev("bench soak --chances 3") == "no --chances"
    assert unknown_to_dev("tests") == "no command tests"
