# SPDX-License-Identifier: Apache-2.0
"""docs/telemetry.md has every name of the registry, as the registry has it."""

from pathlib import Path

import pytest

from tidegate.telemetry.doc_tables import PARTS, main, with_names
from tidegate.telemetry.names import changes, flows, logs, metrics, resource
from tidegate.telemetry.registry import Attribute

PAGE = Path(__file__).parents[3] / "docs" / "telemetry.md"


def test_the_page_is_what_the_registry_says() -> None:
    """`python -m tidegate.telemetry.doc_tables .` has been run since names last changed."""
    text = PAGE.read_text("utf-8")
    assert with_names(text) == text


@pytest.mark.parametrize("part", PARTS)
def test_the_page_has_each_part(part: str) -> None:
    """Also a part that has just been added is on the page."""
    assert f"<!-- names: {part} -->\n" in PAGE.read_text("utf-8")


def test_a_name_means_one_thing() -> None:
    """Spans, points and log records that share a key agree on its type."""
    types: dict[str, set[str]] = {}
    for each in _all():
        types.setdefault(each.key, set()).add(each.type)
    assert {key: found for key, found in types.items() if len(found) > 1} == {}


def test_the_command_writes_tables_and_leaves_prose(tmp_path: Path) -> None:
    """What stood between the marks is replaced, and nothing else."""
    page = tmp_path / "docs" / "telemetry.md"
    page.parent.mkdir()
    page.write_text("Before.\n<!-- names: logs -->\nold\n<!-- end of names -->\nAfter.\n", "utf-8")
    main([str(tmp_path)])
    text = page.read_text("utf-8")
    assert text.startswith("Before.\n<!-- names: logs -->\n")
    assert text.endswith("<!-- end of names -->\nAfter.\n")
    assert f"`{logs.LOGGER.key}`" in text
    assert "old" not in text


def _all() -> list[Attribute]:
    spans = (*changes.SPANS, flows.FLOW)
    events = [event for span in spans for event in span.events]
    of_spans = [attribute for each in spans for attribute in each.attributes]
    of_spans += [attribute for each in events for attribute in each.attributes]
    of_points = [attribute for each in metrics.INSTRUMENTS for attribute in each.attributes]
    return [*of_spans, *of_points, *resource.RESOURCE, *logs.LOGS]
