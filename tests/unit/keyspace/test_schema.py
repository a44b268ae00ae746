# SPDX-License-Identifier: Apache-2.0
"""The public contract: committed schemas and docs are what the structs say."""

import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from msgspec import Struct

from tidegate.keyspace.doc_tables import unit
from tidegate.keyspace.schema import DOCUMENTS, main, schema, schema_text, with_tables
from tidegate.keyspace.status.document import decode, encode, refusals, rfc3339
from tidegate.model.values import Rejection

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "keyspace.md"

UNITS = {"s", "By", "bit", "%", "1/s", "1/min", "1"}
"""Those of UCUM that are in use."""

NUMBERS_OF_THINGS = {
    *("port", "gue_port", "wave", "generation"),
    *("revision", "release_revision", "generation_revision"),
}
"""Fields whose number tells one thing from another, and measures nothing."""


def structs(kind: object) -> set[type[Struct]]:
    """Return the structs of which a type is made, itself included."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        hints = get_type_hints(kind, include_extras=True).values()
        return {kind}.union(*map(structs, hints))
    return set().union(*map(structs, get_args(kind)))


STRUCTS = sorted(set().union(*map(structs, DOCUMENTS.values())), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_committed_schemas_are_the_exported_ones(name: str) -> None:
    """`python -m tidegate.keyspace.schema .` has been run since the structs last changed."""
    assert (ROOT / "schemas" / f"{name}.json").read_text("utf-8") == schema_text(name)


def objects(name: str) -> dict[str, dict[str, Any]]:
    """Return the schema of a document, and those of the objects inside it, by name."""
    exported = schema(name)
    return {name: exported, **exported.get("$defs", {})}


def properties(name: str) -> dict[str, dict[str, Any]]:
    """Return every property of a document and of the objects inside it, by `object.field`."""
    return {
        f"{owner}.{field}": part
        for owner, each in objects(name).items()
        for field, part in each["properties"].items()
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_schemas_are_complete(name: str) -> None:
    """Each object refuses unknown fields, and each of its fields has all that the tables show."""
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for owner, each in objects(name).items():
        assert each["additionalProperties"] is False, owner
        assert each["title"], owner
        assert "\n " not in each["description"], owner
        for field, part in each["properties"].items():
            assert part.get("description"), f"{owner}.{field}"
            assert part.get("examples"), f"{owner}.{field}"
            assert field in each["required"] or "default" in part, f"{owner}.{field}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_quantity_has_a_unit(name: str) -> None:
    """A number says what it counts or measures in, unless it is the number of something."""
    numbers = {
        path: unit(part)
        for path, part in properties(name).items()
        if {"integer", "number"} & {each.get("type") for each in (part, *part.get("anyOf", ()))}
    }
    names = {path for path in numbers if path.rpartition(".")[2] in NUMBERS_OF_THINGS}
    assert {path for path, found in numbers.items() if not found} == names
    assert {numbers[path] for path in numbers.keys() - names} <= UNITS


def test_the_list_of_numbers_without_units_is_in_use() -> None:
    """No name stays on the list of exceptions when its field is gone."""
    fields = {path.rpartition(".")[2] for name in DOCUMENTS for path in properties(name)}
    assert fields >= NUMBERS_OF_THINGS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_are_accepted(name: str) -> None:
    """The example of a schema, and each field's examples, are good documents."""
    exported = schema(name)
    (example,) = exported["examples"]
    for field, part in exported["properties"].items():
        for value in part["examples"]:
            msgspec.convert(example | {field: value}, DOCUMENTS[name], strict=True)


@pytest.mark.parametrize("kind", STRUCTS, ids=lambda kind: kind.__name__)
def test_examples_and_defaults_of_every_object_are_of_its_types(kind: type[Struct]) -> None:
    """So that a reader may copy what the tables show, also for objects inside documents."""
    described = msgspec.json.schema_components((kind,))[1][kind.__name__]["properties"]
    for field, hint in get_type_hints(kind, include_extras=True).items():
        part = described[field]
        for value in [*part["examples"], *([part["default"]] if "default" in part else [])]:
            msgspec.convert(value, hint, strict=True)


def test_the_docs_have_the_fields_of_the_structs() -> None:
    """docs/keyspace.md is as generated, and has each document's key and tables once."""
    text = PAGE.read_text("utf-8")
    assert with_tables(text) == text
    for name in DOCUMENTS:
        assert text.count(f"<!-- key: {name} -->\nKey `<root>/") == 1, name
        assert text.count(f"<!-- fields: {name} -->\n| field ") == 1, name


def test_each_section_of_a_document_begins_with_its_key() -> None:
    """Whose key it is stands right below the heading."""
    lines = PAGE.read_text("utf-8").splitlines()
    for number, line in enumerate(lines):
        if line.startswith("<!-- key: "):
            assert lines[number - 2].startswith("#"), line
            assert not lines[number - 1], line


def test_every_link_to_an_object_has_its_table() -> None:
    """An object's type links to a heading of the same page."""
    text = PAGE.read_text("utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9_ -]", "", each.lower()).replace(" ", "-") for each in headings]
    assert len(anchors) == len(set(anchors))
    linked = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert len(linked) > len(DOCUMENTS)
    assert linked <= set(anchors)


def test_main_restores_files_that_were_changed(tmp_path: Path) -> None:
    """The command rewrites schemas, keys and tables, and leaves the page's prose alone."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "keyspace.md"
    page.write_text(
        "before\n\n<!-- keys -->\n\n<!-- key: pool -->\nKey of old\n\nbetween\n\n"
        "<!-- fields: pool -->\n| old |\n### old\n<!-- end of fields -->\n\nafter\n",
        "utf-8",
    )
    main([str(tmp_path)])
    text = page.read_text("utf-8")
    assert text.startswith("before\n\n<!-- keys -->\n| key ")
    assert "\n\n<!-- key: pool -->\nKey `<root>/<fleet>/config/<release>/pools/<pool>`" in text
    assert "\n\nbetween\n\n<!-- fields: pool -->\n| field " in text
    assert "\n### `pool.health.check`\n" in text
    assert not re.search(r"Key of old|\| old|### old", text)
    assert text.endswith("|\n\n<!-- end of fields -->\n\nafter\n")
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
