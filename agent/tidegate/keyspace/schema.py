# SPDX-License-Identifier: Apache-2.0
"""Export the public contract: JSON Schema 2020-12 of every document, and the tables of the docs.

`python -m tidegate.keyspace.schema FOLDER` rewrites FOLDER/schemas/*.json and the field tables in
FOLDER/docs/keyspace.md. The structs are the source; a test keeps the files equal to them. Agents
check documents with the structs themselves, which also know the rules between documents.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from tidegate.keyspace.status import StatusDocument
from tidegate.model.documents import BackendDocument, PoolDocument, SettingsDocument, VipDocument
from tidegate.model.rollout import RolloutDocument
from tidegate.model.steering import (
    FleetDocument,
    HostDocument,
    OverrideDocument,
    TrackDocument,
    VerdictDocument,
)

DOCUMENTS: Final[dict[str, type[Struct]]] = {
    "vip": VipDocument,
    "pool": PoolDocument,
    "backend": BackendDocument,
    "settings": SettingsDocument,
    "track": TrackDocument,
    "host": HostDocument,
    "fleet": FleetDocument,
    "override": OverrideDocument,
    "rollout": RolloutDocument,
    "status": StatusDocument,
    "verdict": VerdictDocument,
}

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document, with an example made of its fields' examples."""
    kind = DOCUMENTS[name]
    (reference,), components = msgspec.json.schema_components(
        (kind,), ref_template="#/$defs/{name}"
    )
    body = components.pop(kind.__name__)
    assert reference["$ref"] == f"#/$defs/{kind.__name__}"  # noqa: S101 - msgspec's promise
    body["title"] = f"Tidegate {name} document"
    exported = {"$schema": _DIALECT, "$id": f"urn:tidegate:schema:{name}", **body}
    exported["examples"] = [
        {field: part["examples"][0] for field, part in body["properties"].items()}
    ]
    if components:
        exported["$defs"] = components
    return exported


def schema_text(name: str) -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"


def field_table(name: str) -> str:
    """Return a Markdown table of a document's fields."""
    exported = schema(name)
    required = set(exported.get("required", ()))
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field, part in exported["properties"].items():
        default = "required" if field in required else f"`{json.dumps(part.get('default'))}`"
        lines.append(f"| `{field}` | {_kind(part)} | {default} | {part['description']} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return a page with the table after each `<!-- fields: name -->` line made anew."""
    return re.sub(
        r"(<!-- fields: (\w+) -->\n)(?:\|.*\n)*",
        lambda match: f"{match[1]}{field_table(match[2])}\n",
        text,
    )


def _kind(part: dict[str, Any]) -> str:
    """Say in a few words what a property may hold."""
    if "enum" in part:
        return " or ".join(f"`{value}`" for value in part["enum"])
    if "anyOf" in part:
        return " or ".join(_kind(choice) for choice in part["anyOf"])
    kind = str(part.get("type", "object"))
    if "minimum" in part and "maximum" in part:
        return f"{kind}, {part['minimum']} to {part['maximum']}"
    if "minimum" in part:
        return f"{kind}, {part['minimum']} or more"
    return kind


def main(arguments: list[str]) -> None:
    """Write the schemas and the docs' tables below the folder that is the one argument."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m tidegate.keyspace.schema FOLDER")
    folder = Path(arguments[0])
    for name in DOCUMENTS:
        (folder / "schemas" / f"{name}.json").write_text(schema_text(name), "utf-8")
    page = folder / "docs" / "keyspace.md"
    page.write_text(with_tables(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
