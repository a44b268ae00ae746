# SPDX-License-Identifier: Apache-2.0
"""The public contract: committed schemas and docs are what the structs say."""

from pathlib import Path

import msgspec
import pytest

from tidegate.keyspace.schema import DOCUMENTS, main, schema, schema_text, with_tables
from tidegate.keyspace.status import decode, encode, refusals, rfc3339
from tidegate.model.values import Rejection

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_committed_schemas_are_the_exported_ones(name: str) -> None:
    """`python -m tidegate.keyspace.schema .` has been run since the structs last changed."""
    assert (ROOT / "schemas" / f"{name}.json").read_text("utf-8") == schema_text(name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_complete(name: str) -> None:
    """Each field has a description and an example, and unknown fields are refused."""
    exported = schema(name)
    assert exported["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert exported["additionalProperties"] is False
    assert exported["title"]
    assert exported["description"]
    for field, part in exported["properties"].items():
        assert part.get("description"), field
        assert "examples" in part, field
        assert field in exported["required"] or "default" in part, field


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_are_accepted(name: str) -> None:
    """The example of a schema, and each field's examples, are good documents."""
    exported = schema(name)
    (example,) = exported["examples"]
    for field, part in exported["properties"].items():
        for value in part["examples"]:
            msgspec.convert(example | {field: value}, DOCUMENTS[name], strict=True)


def test_the_docs_have_the_fields_of_the_structs() -> None:
    """The tables of docs/keyspace.md are the generated ones, and all documents have one."""
    text = (ROOT / "docs" / "keyspace.md").read_text("utf-8")
    assert with_tables(text) == text
    assert all(f"<!-- fields: {name} -->\n| field " in text for name in DOCUMENTS)


def test_main_restores_files_that_were_changed(tmp_path: Path) -> None:
    """The command rewrites schemas and tables, and leaves the page's prose alone."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "keyspace.md"
    page.write_text("before\n<!-- fields: pool -->\n| old |\n\nafter\n", "utf-8")
    main([str(tmp_path)])
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- fields: pool -->\n| field ")
    assert "old" not in text
    assert text.endswith("|\n\nafter\n")
    assert (tmp_path / "schemas" / "vip.json").read_text("utf-8") == schema_text("vip")


def test_a_status_survives_its_encoding() -> None:
    """What a host writes is what a reader gets."""
    (example,) = schema("status")["examples"]
    document = decode(msgspec.json.encode(example))
    assert decode(encode(document)) == document


def test_times_are_rfc_3339_in_utc() -> None:
    """A wall-clock second is written in UTC, to milliseconds, with a Z."""
    assert rfc3339(1_769_860_800.25) == "2026-01-31T12:00:00.250Z"


def test_a_long_list_of_refusals_is_cut_and_counted() -> None:
    """A status stays below etcd's limit however many keys are bad."""
    listed, left_out = refusals([Rejection("vips/a", "port", "No.", "schema", 7)] * 500)
    assert (len(listed), left_out) == (200, 300)
    assert (listed[0].key, listed[0].revision) == ("vips/a", 7)
