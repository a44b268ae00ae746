# SPDX-License-Identifier: Apache-2.0
"""The generated tables of docs/telemetry.md: every name that is sent or served, and what it means.

A page marks where they go: between `<!-- names: part -->` and `<!-- end of names -->` stand the
tables of one part of the registry. The rest of the page is prose, and is left alone.
"""

import re
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Final

from tidegate.telemetry.metrics.exposition import metric_name
from tidegate.telemetry.names import changes, flows, logs, metrics, resource
from tidegate.telemetry.registry import Attribute, Instrument, SpanType

_MARKED: Final = re.compile(
    r"(<!-- names: (\w+) -->\n).*?(<!-- end of names -->\n)", re.MULTILINE | re.DOTALL
)


def with_names(page: str) -> str:
    """Return a page with its tables of names made anew.

    Raises:
        KeyError: it marks a part that the registry does not have.
    """
    return _MARKED.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}", page)


def main(arguments: list[str]) -> None:
    """Write the tables of the checkout that is the one argument."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m tidegate.telemetry.doc_tables FOLDER")
    page = Path(arguments[0]) / "docs" / "telemetry.md"
    page.write_text(with_names(page.read_text("utf-8")), "utf-8")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    # A bar in a cell would end it.
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines
    )


def _attributes(found: Iterable[Attribute]) -> str:
    rows = (
        (f"`{each.key}`", each.type, f"`{each.example}`", each.description)
        for each in dict.fromkeys(found)
    )
    return _table(("attribute", "type", "example", "meaning"), rows)


def _keys(found: Iterable[Attribute]) -> str:
    return ", ".join(f"`{each.key}`" for each in found)


def _spans(types: Iterable[SpanType]) -> str:
    types = list(types)
    events = [event for each in types for event in each.events]
    parts = [
        _table(
            ("span", "attributes", "meaning"),
            ((f"`{each.name}`", _keys(each.attributes), _meaning(each)) for each in types),
        )
    ]
    if events:
        rows = ((f"`{each.name}`", _keys(each.attributes), each.description) for each in events)
        parts.append(_table(("event of a span", "attributes", "meaning"), rows))
    used = [each.attributes for each in types] + [each.attributes for each in events]
    parts.append(_attributes(chain.from_iterable(used)))
    return "\n".join(parts)


def _meaning(span: SpanType) -> str:
    return f"{span.description} Links: {span.links}." if span.links else span.description


def _metrics(instruments: Iterable[Instrument]) -> str:
    instruments = list(instruments)
    rows = (
        (
            f"`{each.name}`<br>`{metric_name(each)}`",
            each.kind,
            f"`{each.unit}`",
            _keys(each.attributes),
            each.description,
        )
        for each in instruments
    )
    head = ("metric, and for Prometheus", "kind", "unit", "attributes", "meaning")
    used = chain.from_iterable(each.attributes for each in instruments)
    return f"{_table(head, rows)}\n{_attributes(used)}"


PARTS: Final[dict[str, Callable[[], str]]] = {
    "changes": lambda: _spans(changes.SPANS),
    "flows": lambda: _spans((flows.FLOW,)),
    "metrics": lambda: _metrics(metrics.INSTRUMENTS),
    "resource": lambda: _attributes(resource.RESOURCE),
    "logs": lambda: _attributes(logs.LOGS),
}
"""Parts of the registry that a page may mark."""


if __name__ == "__main__":
    main(sys.argv[1:])
