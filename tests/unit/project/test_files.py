# SPDX-License-Identifier: Apache-2.0
"""Rules that hold for the whole tree: licences, sizes, and what the command line calls itself."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = {".c", ".h", ".py", ".pyi", ".sh", ".toml"}
LONGEST = 400
LONGEST_TEST_NAME = 60  # what a report shows of it without a second line


def sources(*folders: str) -> list[Path]:
    """Source files below some folders, and the scripts without a suffix at the top."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    kept = [path for path in found if path.suffix in SOURCES and "__pycache__" not in path.parts]
    assert kept, f"no sources below {folders}: this test looks in the wrong place"
    return sorted(kept)


def name(path: Path) -> str:
    """Name of a file as a test's id."""
    return str(path.relative_to(ROOT))


ALL = [
    *sources("agent", "bpf", "schemas", "tests"),
    ROOT / "dev",
    ROOT / ".ci/run",
    ROOT / "pyproject.toml",
]


@pytest.mark.parametrize("path", ALL, ids=name)
def test_every_source_names_its_licence(path: Path) -> None:
    """It is in the first two lines: GPL-2.0-only for BPF programs, Apache-2.0 for the rest."""
    is_bpf = path.is_relative_to(ROOT / "bpf")
    is_bpf |= path.is_relative_to(ROOT / "tests") and path.suffix in {".c", ".h"}
    licence = "GPL-2.0-only" if is_bpf else "Apache-2.0"
    head = path.read_text().splitlines()[:2]
    assert any(line.split("SPDX-License-Identifier: ")[-1].startswith(licence) for line in head)


@pytest.mark.parametrize("path", [*sources("agent", "bpf"), ROOT / "dev"], ids=name)
def test_no_source_is_too_long(path: Path) -> None:
    """A file that needs more than 400 lines is two files."""
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", sources("agent"), ids=name)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """A module begins with its docstring, and no module is a drawer for what fits nowhere."""
    assert path.stem not in {"utils", "helpers", "manager", "common"}
    if path.suffix == ".py":
        assert path.read_text().splitlines()[1].startswith('"""')


def test_names_of_tests_can_be_scanned() -> None:
    """No test's name, without its parameters, is longer than a person reads at a glance."""
    names = [
        found
        for path in sources("tests")
        for found in re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    ]
    assert len(names) > LONGEST_TEST_NAME
    assert [each for each in names if len(each) > LONGEST_TEST_NAME] == []


def test_the_command_names_its_version() -> None:
    """`tidegate --version` is the version that the package was installed with."""
    done = subprocess.run(
        [Path(sys.executable).with_name("tidegate"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"tidegate {version('tidegate')}\n"


def test_the_lock_pins_every_dependency_with_hashes() -> None:
    """Every dependency has an entry, each with an exact version, a hash, and no address."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^[a-z][^\n]*(?:\n {4}--hash[^\n]*)*", lock, re.MULTILINE)
    assert all(re.match(r"[a-z0-9.-]+==\S+ .*\\\n {4}--hash=sha256:", entry) for entry in entries)
    pinned = {entry.split("==")[0] for entry in entries}
    wanted = re.findall(r'^  "([a-z0-9-]+)[>=<]+[\d.,<>=]+",$', pyproject(), re.MULTILINE)
    assert len(wanted) > len({"runtime", "dev"})
    assert set(wanted) <= pinned
    assert "://" not in lock


def pyproject() -> str:
    """Text of pyproject.toml."""
    return (ROOT / "pyproject.toml").read_text()


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md speaks of each dependency and each Debian package by name."""
    reasons = (ROOT / "docs/dependencies.md").read_text()
    python = re.findall(r'^  "([a-z0-9-]+)[>=<]', pyproject(), re.MULTILINE)
    script = (ROOT / "dev").read_text()
    lists = re.findall(r"^[A-Z]+_PACKAGES = (\(.*\))$", script, re.MULTILINE)
    debian = [name for each in lists for name in re.findall(r'"([a-z0-9-]+)"', each)]
    assert {"gcc", "nginx", "python3-bpfcc"} <= set(debian)
    assert [each for each in python + debian if f"`{each}`" not in reasons] == []


def test_every_command_of_the_script_is_known_to_it() -> None:
    """What its help lists is not refused: a command that lacks root says so, and is not unknown."""
    script = (ROOT / "dev").read_text()
    commands = re.findall(
        r"^  ([a-z]+) \[?|^  ([a-z]+) ", script.split("for example:")[0], re.MULTILINE
    )
    accepted = script.split("if command not in {")[1].split("}")[0]
    names = {name for pair in commands for name in pair if name}
    assert names
    assert names == set(re.findall(r'"([a-z]+)"', accepted))
