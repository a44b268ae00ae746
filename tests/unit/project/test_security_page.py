# SPDX-License-Identifier: Apache-2.0
"""The page on who may do what names tests that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
FILES = re.findall(r"`((?:unit|integration|chaos)/[\w/]+\.py|test_\w+\.py)`", PAGE)
NAMES = re.findall(r"`(test_\w+)`", PAGE)


@pytest.mark.parametrize("path", sorted(set(FILES)))
def test_its_files_of_tests_are_there(path: str) -> None:
    """Those without a folder are in the conformance suite."""
    folder = "" if "/" in path else "conformance/"
    assert (ROOT / "tests" / f"{folder}{path}").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_its_tests_are_there(name: str) -> None:
    """By the names that it gives."""
    everything = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert f"def {name}(" in everything
