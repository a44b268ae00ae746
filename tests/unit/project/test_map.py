# SPDX-License-Identifier: Apache-2.0
"""CONTRIBUTING's map has every room, and its arrow of imports is the one that is enforced."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "agent/tidegate"
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def mapped() -> dict[str, str]:
    """Return what the map says of each folder, by its path."""
    block = PAGE.split("## The map")[1].split("\nImports point one way")[0]
    found, above = {}, list[str]()
    for indent, name, text in re.findall(r"^ {4}( *)([\w/]+)/ +(\S.*)$", block, re.MULTILINE):
        above = [*above[: len(indent) // 2], name]
        found["/".join(above)] = text
    return found


def folders(below: Path) -> set[str]:
    """Return the packages below a folder, at any depth."""
    return {str(path.parent.relative_to(ROOT)) for path in below.rglob("__init__.py")}


def test_the_map_names_every_package() -> None:
    """And no folder that is not there; each with a few words."""
    named = mapped()
    assert {path for path in named if path.startswith("agent/tidegate")} == folders(PACKAGE)
    assert [path for path in named if not (ROOT / path).is_dir()] == []


def test_the_map_names_every_folder_of_tests() -> None:
    """All that there is directly below tests/."""
    there = {path.parent for path in (ROOT / "tests").glob("*/**/*.py")}
    rooms = {path.relative_to(ROOT / "tests").parts[0] for path in there}
    assert {f"tests/{room}" for room in rooms} == {
        path for path in mapped() if path.startswith("tests/")
    }


def test_the_arrow_of_imports_is_the_contracts() -> None:
    """Package for package; single modules between the packages are left out of it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (layers,) = (
        each["layers"] for each in contracts["contracts"] if each["name"] == "imports point one way"
    )
    wanted = [set(re.findall(r"tidegate\.(\w+)", layer)) for layer in layers]
    arrow = next(line for line in PAGE.splitlines() if line.startswith("    cli → "))
    said = [set(re.findall(r"\w+", step)) for step in arrow.split("→")]
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    known = packages | {"errors"}
    assert said == [step & known for step in wanted if step & known]
    assert set.union(*said) == known
