# SPDX-License-Identifier: Apache-2.0
"""What pages say of the tree: their links lead somewhere, and the agent's file is complete."""

import re
import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from msgspec import Struct

from tidegate.agent import config

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
AGENT_FILE = ROOT / "deploy" / "agent.toml"


def name(path: Path) -> str:
    """Name of a file as a test's id."""
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> list[str]:
    """Return the names by which a page's headings are linked to."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^a-z0-9_ -]", "", each.lower()).replace(" ", "-") for each in headings]


def links(page: Path) -> list[str]:
    """Return what a page links to, other sites aside."""
    found: list[str] = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    return [each for each in found if "://" not in each]


def leads_nowhere(page: Path, link: str) -> bool:
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    return not target.exists() or bool(anchor and anchor not in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files that a page links to are there, and so are the headings."""
    assert [each for each in links(page) if leads_nowhere(page, each)] == []


def test_the_readme_leads_to_every_page() -> None:
    """Nobody has to guess what is in docs/ and deploy/."""
    readme = ROOT / "README.md"
    reached = {(ROOT / each.partition("#")[0]).resolve() for each in links(readme)}
    assert set(PAGES) - {readme} <= reached


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_a_page_names_are_there(page: Path) -> None:
    """A page's word that something is tested can be followed."""
    named = set(re.findall(r"\b((?:test|bench)_\w+\.py)", page.read_text("utf-8")))
    assert named <= {path.name for path in (ROOT / "tests").rglob("*.py")}


def settings(text: str) -> dict[str, Any]:
    """Return the agent's file with every key that a comment shows."""
    return tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))


def test_the_agents_file_shows_every_key() -> None:
    """deploy/agent.toml has all keys of the file, in their tables."""
    shown = settings(AGENT_FILE.read_text("utf-8"))
    wanted = get_type_hints(config.AgentConfig)
    assert set(shown) == set(wanted)
    for field, kind in wanted.items():
        if isinstance(kind, type) and issubclass(kind, Struct):
            assert set(shown[field]) == set(kind.__struct_fields__), field


def test_the_agents_file_shows_the_defaults(tmp_path: Path) -> None:
    """With what is commented out it means the same as without, but for what has no default."""
    plain = config.read(AGENT_FILE)
    path = tmp_path / "agent.toml"
    uncommented = re.sub(r"^# (\w+ = )", r"\1", AGENT_FILE.read_text("utf-8"), flags=re.MULTILINE)
    path.write_text(uncommented, "utf-8")
    changed = config.changes(plain, config.read(path))
    without = {"host", "track", "gateway", "etcd", "ready_stale_limit"}
    assert {*changed.reloadable, *changed.fixed} == without
    etcd = config.read(path).etcd
    differing = {
        field
        for field in etcd.__struct_fields__
        if getattr(etcd, field) != getattr(plain.etcd, field)
    }
    assert differing == {"ca", "cert", "key", "server_name", "user", "password_file"}
