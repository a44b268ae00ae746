# SPDX-License-Identifier: Apache-2.0
"""Decode one document into a typed struct, or into the complete list of its faults.

The fast path is one msgspec call. Only when it fails is the document checked field by field, to
name every fault with the value that was found and what is allowed. Knows no other keys.
"""

import json
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, inspect

from tidegate.keyspace.bounds import MAX_BYTES
from tidegate.keyspace.paths import NAME_PATTERN, NAME_RULE
from tidegate.model import traceparent
from tidegate.model.byte_order_mark import without_mark
from tidegate.model.document_types import SERVER_ID_PATTERN, TIME_PATTERN
from tidegate.model.values import Document, Stage

S = TypeVar("S", bound=Struct)

UNNAMED: Final = "(no name)"
"""Shown for a key that is its prefix and nothing else."""

_SHOWN: Final = 60
_LONGEST_KEY: Final = 200
_MAX_FAULTS: Final = 32


class Fault(NamedTuple):
    """One thing that is wrong with a document."""

    field: str
    reason: str
    stage: Stage


def decode_kept(document: Document, kind: type[S]) -> S | list[Fault]:
    """Decode a document as `decode`, or say why it was too much to be kept."""
    if document.refused:
        return [Fault("", document.refused, "decode")]
    return decode(document.value, kind)


def decode(value: bytes, kind: type[S]) -> S | list[Fault]:
    """Decode a document, or say everything that is wrong with it. Never raises on what it reads."""
    decoder, names = _prepared(kind)
    value = without_mark(value)
    if len(value) > MAX_BYTES:
        reason = f"the document has {len(value)} bytes; the limit is {MAX_BYTES}"
        return [Fault("", reason, "decode")]
    try:
        document: S = decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _faults(value, kind)
    if b"traceparent" in value and (faults := _trace_faults(document)):
        return faults
    # JSON lets a name appear twice, and readers differ in which one counts. A name that is seen
    # once, in a document without escapes and inner objects, cannot be there twice.
    if b"\\" not in value and value.count(b"{") == 1:
        for name in names:
            if value.count(name) > 1:
                break
        else:
            return document
    return _duplicates(value) or document


def _trace_faults(document: Struct) -> list[Fault]:
    text = getattr(document, "traceparent", None)
    fault = traceparent.fault(text) if text else ""
    return [Fault("traceparent", f"traceparent {fault}", "schema")] if fault else []


def shown(value: object) -> str:
    """Return a value as JSON, shortened, for a message."""
    return shortened(json.dumps(value, ensure_ascii=True, default=repr), _SHOWN)


def shortened(text: str, limit: int = _LONGEST_KEY) -> str:
    """Return a text, or its beginning and an ellipsis; what others write can be very long."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def key_shown(key: str) -> str:
    """Return a key for a message: shortened, and never empty."""
    return shortened(key) or UNNAMED


@cache
def _prepared(kind: type[S]) -> tuple["msgspec.json.Decoder[S]", tuple[bytes, ...]]:
    names = tuple(b'"%s"' % name.encode() for name in kind.__struct_encode_fields__)
    return msgspec.json.Decoder(kind, strict=True), names


def _faults(value: bytes, kind: type[S]) -> list[Fault]:
    """Find the faults of a refused document; return at least one."""
    try:
        value.decode("utf-8")
        raw = msgspec.json.decode(value)
    except UnicodeDecodeError as error:
        byte = value[error.start]
        reason = f"the document is not UTF-8: byte 0x{byte:02x} at position {error.start}"
        return [Fault("", reason, "decode")]
    except RecursionError:
        return [Fault("", "the document is nested too deeply", "decode")]
    except msgspec.DecodeError as error:
        return [Fault("", f"the document is not valid JSON: {error}", "decode")]
    if not isinstance(raw, dict):
        reason = f"the document is {shown(raw)}; it must be a JSON object"
        return [Fault("", reason, "schema")]
    faults = _duplicates(value) + _field_faults(raw, kind)
    if len(faults) > _MAX_FAULTS:
        reason = f"the document has {len(faults) - _MAX_FAULTS} more faults"
        faults = [*faults[:_MAX_FAULTS], Fault("", reason, "schema")]
    # The fields may be good one by one and the whole not, once structs check themselves.
    return faults or [Fault("", _whole(value, kind), "schema")]


def _whole(value: bytes, kind: type[S]) -> str:
    try:
        msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        return f"the document is refused: {error}"
    return "the document is refused"


def _field_faults(raw: dict[str, Any], kind: type[S]) -> list[Fault]:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    known = ", ".join(fields)
    faults = [
        Fault(
            shortened(name),
            f"{shown(name)} is not a field of this document; its fields are {known}",
            "schema",
        )
        for name in raw
        if name not in fields
    ]
    for name, field in fields.items():
        allowed = _allowed(inspect.type_info(field.type))
        if name not in raw:
            if field.required:
                faults.append(Fault(name, f"{name} is missing; it must be {allowed}", "schema"))
            continue
        try:
            msgspec.convert(raw[name], field.type, strict=True)
        except msgspec.ValidationError as error:
            place = name + _path(str(error))
            found = shown(raw[name])
            faults.append(Fault(place, f"{name} is {found}; it must be {allowed}", "schema"))
    return faults


def _path(message: str) -> str:
    """Return where inside a field msgspec found the fault: its message ends in "at `$.a.b`"."""
    _, at, path = message.rpartition(" - at `$")
    return path.rstrip("`") if at else ""


def _allowed(kind: inspect.Type) -> str:  # noqa: PLR0911 - one answer per type
    """Say in words what a field may hold."""
    match kind:
        case inspect.Metadata(type=inner):
            return _allowed(inner)
        case inspect.UnionType(types=types):
            return " or ".join(_allowed(choice) for choice in types)
        case inspect.DictType(value_type=inner):
            return f"an object whose values are each {_allowed(inner)}"
        case inspect.VarTupleType(item_type=inner):
            return f"a list whose items are each {_allowed(inner)}"
        case inspect.StructType(fields=fields):
            known = ", ".join(f"{field.encode_name} ({_allowed(field.type)})" for field in fields)
            return f"an object with {known}"
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(shown(value) for value in values)
        case inspect.IntType() | inspect.StrType():
            return _allowed_scalar(kind)
        case inspect.BoolType():
            return "true or false"
        case _:
            return "null" if isinstance(kind, inspect.NoneType) else "as the schema gives it"


def _allowed_scalar(kind: inspect.IntType | inspect.StrType) -> str:  # noqa: PLR0911 - as above
    match kind:
        case inspect.IntType(ge=low, le=high) if low is not None and high is not None:
            return f"a whole number from {low} to {high}"
        case inspect.IntType():
            return "a whole number"
        case inspect.StrType(pattern=pattern) if pattern == NAME_PATTERN:
            return f"a name; {NAME_RULE}"
        case inspect.StrType(pattern=pattern) if pattern == SERVER_ID_PATTERN:
            return "a string of 1 to 15 bytes in hexadecimal"
        case inspect.StrType(pattern=pattern) if pattern == TIME_PATTERN:
            return "a time in UTC, such as 2026-01-31T12:00:00Z"
        case inspect.StrType(pattern=pattern) if pattern == traceparent.PATTERN:
            return "a W3C traceparent of version 00: 00-<32 hex digits>-<16>-<2>, in lower case"
        case inspect.StrType(min_length=low, max_length=high) if high:
            return f"a string of {low or 0} to {high} characters"
        case _:
            return "a string"


def _duplicates(value: bytes) -> list[Fault]:
    """Name the fields that a JSON object has more than once. `value` is JSON already."""
    twice: set[str] = set()

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: set[str] = set()
        for name, _ in pairs:
            (twice if name in seen else seen).add(name)
        return dict(pairs)

    try:
        json.loads(value, object_pairs_hook=note)
    except (RecursionError, ValueError) as error:  # stricter than msgspec in depth or digits
        return [Fault("", f"the document is not plain JSON: {error}", "decode")]
    return [
        Fault(shortened(name), f"{shown(name)} appears more than once; write it once", "decode")
        for name in sorted(twice)
    ]
