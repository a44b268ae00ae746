# SPDX-License-Identifier: Apache-2.0
"""The generated parts of docs/keyspace.md: whose key a document is, and its fields as tables.

A page marks where they go. After `<!-- keys -->` comes a table of all keys, and after
`<!-- key: name -->` a line that says one document's key and writer. Between `<!-- fields: name -->`
and `<!-- end of fields -->` stand its table and one for each object inside it. The rest of the page
is prose, and is left alone. This module reads schemas, and knows no struct.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

Part: TypeAlias = dict[str, Any]

_KEYS: Final = re.compile(r"(<!-- keys -->\n)(?:\S.*\n)*")
_KEY: Final = re.compile(r"(<!-- key: (\w+) -->\n)(?:\S.*\n)*")
_FIELDS: Final = re.compile(
    r"(<!-- fields: (\w+) -->\n).*?(<!-- end of fields -->\n)", re.MULTILINE | re.DOTALL
)
_KEYS_HEAD: Final = "| key | written by | holds |\n|---|---|---|\n"
_HEAD: Final = "| field | type | unit | default | example | meaning |\n|---|---|---|---|---|---|\n"


class Entry(NamedTuple):
    """One document: where it is in etcd, who writes it, and its JSON Schema."""

    key: str
    writer: str
    schema: Part


def with_generated_parts(page: str, entries: Mapping[str, Entry]) -> str:
    """Return a page with its generated parts made anew."""
    rows = "".join(_key_row(entry) for entry in entries.values())
    page = _KEYS.sub(lambda match: match[1] + _KEYS_HEAD + rows, page)

    def key(match: re.Match[str]) -> str:
        return f"{match[1]}{_key_line(match[2], entries[match[2]])}\n"

    def fields(match: re.Match[str]) -> str:
        return f"{match[1]}{_tables(match[2], entries[match[2]].schema)}\n{match[3]}"

    return _FIELDS.sub(fields, _KEY.sub(key, page))


def unit(part: Part) -> str:
    """Return the unit (UCUM) of a property, of its items, or of its choice that has one."""
    parts = (part, *part.get("anyOf", ()))
    return next((str(each["unit"]) for each in parts if "unit" in each), "")


def example(part: Part) -> object:
    """Return the first example of a property that shows a value, else the first."""
    examples = part["examples"]
    return next((each for each in examples if each not in (None, "", [], {})), examples[0])


def _key_row(entry: Entry) -> str:
    summary = entry.schema["description"].split("\n")[0]
    return f"| `{entry.key}` | {entry.writer} | {summary} |\n"


def _key_line(name: str, entry: Entry) -> str:
    return (
        f"Key `{entry.key}`, written by {entry.writer}. Schema: "
        f"[`schemas/{name}.json`](../schemas/{name}.json)."
    )


def _tables(name: str, schema: Part) -> str:
    """Return the table of a document, and below headings of their own those of its objects."""
    parts = [_table(schema, name)]
    for path, nested in _nested(name, schema, schema.get("$defs", {})):
        parts.append(f"### `{path}`\n\n{nested['description']}\n\n{_table(nested, path)}")
    return "\n".join(parts)


def _nested(path: str, schema: Part, definitions: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    """Yield the objects inside an object in the order of its fields, each with its path."""
    for field, part in schema["properties"].items():
        suffix, ref = _object_ref(part)
        if ref:
            inner, nested = f"{path}.{field}{suffix}", definitions[ref]
            yield inner, nested
            yield from _nested(inner, nested, definitions)


def _object_ref(part: Part) -> tuple[str, str]:
    """Return how a property holds objects (itself, `[]`, `.*`), and the name of their schema."""
    if "$ref" in part:
        return "", part["$ref"].rsplit("/", 1)[-1]
    inside = [("", choice) for choice in part.get("anyOf", ())]
    inside += [("[]", part.get("items")), (".*", part.get("additionalProperties"))]
    for suffix, inner in inside:
        deeper, ref = _object_ref(inner) if isinstance(inner, dict) else ("", "")
        if ref:
            return suffix + deeper, ref
    return "", ""


def _table(schema: Part, path: str) -> str:
    required = set(schema.get("required", ()))
    rows = (
        _row(field, part, f"{path}.{field}", required=field in required)
        for field, part in schema["properties"].items()
    )
    return _HEAD + "".join(rows)


def _row(field: str, part: Part, path: str, *, required: bool) -> str:
    default = "required" if required else _code(part["default"])
    measured = f"`{found}`" if (found := unit(part)) else ""
    cells = (f"`{field}`", _kind(part, path), measured, default, _code(example(part)))
    return f"| {' | '.join(cells)} | {part['description']} |\n"


def _code(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _kind(part: Part, path: str) -> str:
    """Say in a few words what a property may hold; objects link to their own tables."""
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(_kind(choice, path) for choice in part["anyOf"])
    if "$ref" in part:
        anchor = re.sub(r"[^a-z0-9_-]", "", path.lower())
        return f"[object](#{anchor})"
    if "items" in part:
        kind = _kind(part["items"], path)
        return f"list of {kind}s" if kind.isalpha() else f"list of {kind}"
    if isinstance(part.get("additionalProperties"), dict):
        return f"map of strings to {_kind(part['additionalProperties'], path)}"
    return f"{part.get('title', part.get('type', 'any'))}{_range(part)}"


def _range(part: Part) -> str:
    """Say between which bounds a number is, or how long a text may be."""
    if "minimum" in part and "maximum" in part:
        return f", {part['minimum']} to {part['maximum']}"
    if "minimum" in part:
        return f", {part['minimum']} or more"
    if "maxLength" in part:
        return f", at most {part['maxLength']} characters"
    return ""
