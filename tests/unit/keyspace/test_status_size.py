# SPDX-License-Identifier: Apache-2.0
"""A status is one value in etcd and a generation one line in a log, whatever is written."""

import json

from support.documents.keyspaces import check
from tidegate.keyspace.status.document import MAX_REFUSALS, StatusDocument, encode, refusals
from tidegate.planner.diff import Diff, Move


def test_the_worst_documents_fit_in_a_status() -> None:
    """Foreign names and values are cut short, so refusals take no more than 100 KiB of it."""
    for size in (100, 3000, 200_000):
        big = "x" * size
        service = {"port": 1, "protocol": "tcp", "pool": "p"}
        worst: dict[str, object] = {}
        for n in range(MAX_REFUSALS):
            worst[f"vips/a{n}"] = {big + str(n): 1}
            worst[f"vips/b{n}"] = {"address": big, **service, "pool": big}
            worst[f"vips/c{n}"] = {"address": big, "port": big, "protocol": big, "pool": big}
            worst[f"vips/{big}{n}"] = {}
            worst[f"pools/q/backends/{n}"] = {"address": big, "weight": [big], "state": big}
        found = check(worst).rejections
        listed, left_out = refusals(found)
        assert left_out == len(found) - MAX_REFUSALS
        status = StatusDocument(
            version="1",
            host="h",
            release="live",
            revision=1,
            generation=1,
            state="degraded",
            refusals=listed,
            refusals_left_out=left_out,
            started_at="2026-01-31T12:00:00Z",
        )
        assert json.loads(encode(status))["refusals_left_out"] == left_out
        assert len(encode(status)) < 100 << 10


def test_a_storm_of_tables_is_one_readable_line() -> None:
    """Ten tables are logged, those that moved the most, and the others are counted."""
    moves = {f"p{n}": Move(n, 1, n) for n in range(1000)}
    text = str(Diff(moves=moves).log_fields()["moved"])
    assert "p999:999/65537(min 1, bound 999)" in text
    assert "p989:" not in text
    assert text.endswith(",and 990 more")
    assert len(text) < 600
