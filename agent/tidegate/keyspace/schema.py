# SPDX-License-Identifier: Apache-2.0
"""Export the public contract: JSON Schema 2020-12 of every document, and the tables of the docs.

`python -m tidegate.keyspace.schema FOLDER` rewrites FOLDER/schemas/*.json and the field tables in
FOLDER/docs/keyspace.md. The structs are the source; a test keeps the files equal to them. Agents
check documents with the structs themselves, which also know the rules between documents.
"""

import json
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from tidegate.keyspace.doc_tables import Entry, with_generated_parts
from tidegate.keyspace.status.document import StatusDocument
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
_RELEASE: Final = "<root>/<fleet>/config/<release>"
_FLEET: Final = "<root>/<fleet>"
KEYS: Final[dict[str, tuple[str, str]]] = {
    "vip": (f"{_RELEASE}/vips/<vip>", "you"),
    "pool": (f"{_RELEASE}/pools/<pool>", "you"),
    "backend": (f"{_RELEASE}/pools/<pool>/backends/<backend>", "you"),
    "settings": (f"{_RELEASE}/settings", "you"),
    "track": (f"{_FLEET}/tracks/<track>", "you, and `tidegate rollout`"),
    "host": (f"{_FLEET}/hosts/<host>", "you, and `tidegate rollout`"),
    "fleet": (f"{_FLEET}/fleet", "you"),
    "override": (f"{_FLEET}/overrides/<override>", "you, or `tidegate override`"),
    "rollout": (f"{_FLEET}/rollout", "`tidegate rollout`"),
    "status": (f"{_FLEET}/status/<host>", "the host's agent, under its lease"),
    "verdict": (f"{_FLEET}/health/<host>/<pool>/<backend>", "the host's agent, under its lease"),
}
"""Where each document is, and who writes it."""

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a document, with an example made of its fields' examples."""
    kind = DOCUMENTS[name]
    (root,), components = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    body = components.pop(kind.__name__)
    assert root["$ref"] == f"#/$defs/{kind.__name__}"  # noqa: S101 - msgspec's promise
    body["title"] = f"Tidegate {name} document"
    exported = {"$schema": _DIALECT, "$id": f"urn:tidegate:schema:{name}", **body}
    exported["examples"] = [
        {field: part["examples"][0] for field, part in body["properties"].items()}
    ]
    if components:
        exported["$defs"] = components
    for part in (exported, *components.values()):
        part["description"] = cleandoc(part["description"])
    return exported


def schema_text(name: str) -> str:
    """Return the schema as the text of its file."""
    return json.dumps(schema(name), indent=2, ensure_ascii=False) + "\n"


def with_tables(page: str) -> str:
    """Return docs/keyspace.md with its generated parts up to date."""
    return with_generated_parts(
        page, {name: Entry(*key, schema(name)) for name, key in KEYS.items()}
    )


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
