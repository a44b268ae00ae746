# SPDX-License-Identifier: Apache-2.0
"""Health checks in a pool's document: what is taken, and what is refused with which words."""

import json

import pytest

from tidegate.keyspace.documents.validate import validate
from tidegate.model.checks import FIELDS, Check, Health
from tidegate.model.values import EMPTY, Document, Snapshot


def read(health: object) -> tuple[Health | None, list[tuple[str, str]]]:
    """Return a pool with this check as validated: its value, and the faults with their fields."""
    document = Document(json.dumps({"health": health}).encode(), 5)
    desired, rejections = validate(Snapshot(5, {"pools/web": document}), EMPTY)
    pool = desired.pools.get("web")
    return pool.health if pool else None, [(r.field, r.reason) for r in rejections]


@pytest.mark.parametrize(
    "check",
    [
        {"type": "tcp"},
        {"type": "tcp", "port": 8080, "interval": 0.1, "timeout": 0.1, "rise": 1, "fall": 1},
        {"type": "http", "host": "shop.example", "path": "/a?b=c", "status": ["200", "300-399"]},
        {"type": "https", "verify": False, "body": "ok", "source4": "198.51.100.250"},
        {"type": "udp", "send": "ping", "expect": "pong"},
        {"type": "dns", "query": "www.example", "query_type": "AAAA", "source6": "2001:db8::1"},
        {"type": "grpc", "service": "shop", "tls": True},
        {"type": "exec", "command": ["/bin/true", "-v"]},
    ],
)
def test_good_checks_are_values(check: dict[str, object]) -> None:
    """Each type with its own fields is taken as it is written."""
    health, faults = read({"check": check})
    assert faults == []
    assert health is not None
    assert health.check is not None
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in check.items()}
    assert {name: getattr(health.check, name) for name in check} == lists


@pytest.mark.parametrize(
    ("health", "field", "words"),
    [
        ({"check": {"type": "ftp"}}, "health.check.type", "health is"),
        ({"check": {"type": "tcp", "colour": "red"}}, "health.check", "health is"),
        (
            {"check": {"type": "tcp", "interval": 1, "timeout": 2}},
            "health.check.timeout",
            "timeout is 2; it must be at most the interval, 1",
        ),
        (
            {"check": {"type": "tcp", "path": "/x"}},
            "health.check.path",
            'path is set; remove it, since a check of type "tcp" does not use it',
        ),
        ({"check": {"type": "http", "path": "x"}}, "health.check.path", "must begin with /"),
        ({"check": {"type": "http", "path": "/x y"}}, "health.check.path", "no spaces"),
        ({"check": {"type": "http", "host": "a\r\nb"}}, "health.check.host", "must be a host name"),
        ({"check": {"type": "http", "status": ["299-200"]}}, "health.check.status", "ends before"),
        ({"check": {"type": "tcp", "source4": "::1"}}, "health.check.source4", ""),
        ({"check": {"type": "tcp", "source6": "192.0.2.1"}}, "health.check.source6", "an IPv6"),
        ({"check": {"type": "dns"}}, "health.check.query", "is missing"),
        ({"check": {"type": "exec"}}, "health.check.command", "absolute path"),
        ({"check": {"type": "exec", "command": ["ls"]}}, "health.check.command", "absolute path"),
        ({}, "health.check", 'mode "fleet" needs a check'),
        ({"mode": "local"}, "health.check", 'mode "local" needs a check'),
    ],
)
def test_bad_checks_are_refused_by_field(health: dict[str, object], field: str, words: str) -> None:
    """The fault names the field and what it must be; the pool stays as it was."""
    found, faults = read(health)
    assert found is None
    assert [name for name, _ in faults] == [field], faults
    assert words in faults[0][1]


def test_a_control_system_may_judge_without_a_check() -> None:
    """Mode external needs no check, and may have one."""
    assert read({"mode": "external"})[1] == []
    assert read({"mode": "external", "check": {"type": "tcp"}})[1] == []


def test_every_field_belongs_to_some_type() -> None:
    """The table of types names fields that a check has."""
    names = set(Check.__struct_fields__)
    assert {field for fields in FIELDS.values() for field in fields} <= names
