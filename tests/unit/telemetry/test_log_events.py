# SPDX-License-Identifier: Apache-2.0
"""What the modules of the agent log: events with names that can be searched for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidegate.event_log import RESERVED

SOURCE = Path(__file__).parents[3] / "agent" / "tidegate"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def calls(path: Path) -> Iterator[ast.Call]:
    """Return where a module logs something."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "log":
                yield node


SOURCES = sorted(SOURCE.rglob("*.py"))
MODULES = [path for path in SOURCES if "= EventLog(__name__)" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_an_event_has_a_name_and_fields(path: Path) -> None:
    """The name is a literal, and no field takes the place of what each line has."""
    for call in calls(path):
        assert isinstance(call.func, ast.Attribute)
        name = call.args[call.func.attr == "log"]
        assert isinstance(name, ast.Constant), ast.unparse(call)
        assert NAME.fullmatch(str(name.value)), ast.unparse(call)
        assert len(call.args) == 1 + (call.func.attr == "log"), ast.unparse(call)
        assert not RESERVED & {each.arg for each in call.keywords}, ast.unparse(call)


def test_every_module_logs_events() -> None:
    """None has a logger of its own, whose messages would be sentences without fields."""
    own = [path for path in SOURCES if "getLogger(__name__)" in path.read_text("utf-8")]
    assert own == []
