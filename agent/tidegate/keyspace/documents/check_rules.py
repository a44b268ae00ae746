# SPDX-License-Identifier: Apache-2.0
"""Check the rules between the fields of a pool's health check; single fields have types."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from tidegate.keyspace.documents.addresses import parse_address
from tidegate.keyspace.documents.decode import Fault, shown
from tidegate.model.checks import FIELDS, Check, Health

_SPECIAL: Final = {field for fields in FIELDS.values() for field in fields}
_HOST: Final = re.compile(r"[A-Za-z0-9._:\[\]-]*")
_PATH: Final = re.compile(r"/[!-~]*")


def health_faults(health: Health) -> list[Fault]:
    """Return everything that is wrong with how a pool's backends are checked."""
    if health.check is not None:
        return [
            Fault(f"health.check.{field}", f"health.check.{field} {reason}", "schema")
            for field, reason in _check_faults(health.check)
        ]
    if health.mode == "external":
        return []
    reason = f"health.check is null; mode {shown(health.mode)} needs a check"
    return [Fault("health.check", reason, "schema")]


def _check_faults(check: Check) -> Iterator[tuple[str, str]]:
    if check.timeout > check.interval:
        yield (
            "timeout",
            f"is {check.timeout:g}; it must be at most the interval, {check.interval:g}",
        )
    for field in msgspec.structs.fields(Check):
        given = getattr(check, field.name) != field.default
        if given and field.name in _SPECIAL and field.name not in FIELDS[check.type]:
            yield (
                field.name,
                f"is set; remove it, since a check of type {shown(check.type)} does not use it",
            )
    for name, version in (("source4", 4), ("source6", 6)):
        text = getattr(check, name)
        address = None if text is None else parse_address(text)
        if isinstance(address, str):
            yield name, address
        elif address is not None and address.version != version:
            yield name, f"is {text}; it must be an IPv{version} address"
    if not _HOST.fullmatch(check.host):
        yield "host", f"is {shown(check.host)}; it must be a host name or an address"
    if not _PATH.fullmatch(check.path):
        yield "path", f"is {shown(check.path)}; it must begin with / and have no spaces"
    yield from _type_faults(check)


def _type_faults(check: Check) -> Iterator[tuple[str, str]]:
    for good in check.status:
        first, _, last = good.partition("-")
        if last and last < first:
            yield "status", f"has {shown(good)}, which ends before it begins; swap its ends"
    if check.type == "dns" and not check.query:
        yield "query", "is missing; a check of type dns asks for a name"
    if check.type == "exec" and not (check.command and check.command[0].startswith("/")):
        yield "command", "must begin with the absolute path of a program"
