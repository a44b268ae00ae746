# SPDX-License-Identifier: Apache-2.0
"""Keyspaces as dictionaries, and what validation makes of them, for tests."""

import json

from tidegate.keyspace.documents.validate import Validation, validate
from tidegate.model.values import EMPTY, Desired, Document, Snapshot

Contents = dict[str, object]

WEB: Contents = {
    "pools/web": {},
    "pools/web/backends/a": {"address": "198.51.100.1"},
    "vips/shop": {"address": "192.0.2.1", "port": 443, "protocol": "tcp", "pool": "web"},
}


def vip(pool: str = "web", last: int = 1, port: int = 443) -> dict[str, object]:
    return {"address": f"192.0.2.{last}", "port": port, "protocol": "tcp", "pool": pool}


def snapshot(contents: Contents, revision: int = 1000) -> Snapshot:
    """Encode contents; the order of keys is the order of writing."""
    documents = {
        key: Document(
            value if isinstance(value, bytes) else json.dumps(value).encode(), number, number
        )
        for number, (key, value) in enumerate(contents.items(), start=2)
    }
    return Snapshot(revision, documents)


def check(contents: Contents, last: Desired = EMPTY) -> Validation:
    return validate(snapshot(contents), last)


def refused(validation: Validation) -> list[tuple[str, str, str]]:
    return [(item.key, item.field, item.stage) for item in validation.rejections]
