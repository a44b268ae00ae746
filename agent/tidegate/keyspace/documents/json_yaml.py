# SPDX-License-Identifier: Apache-2.0
"""Read JSON and YAML as people write them into files: where each document begins, and its JSON.

JSON is cut out of its file byte for byte. YAML becomes JSON text node by node, so that a name that
appears twice still does so when the document is decoded. Values are read by one rule, which
does not depend on the version of YAML: a scalar without quotes is null, true, false or a number
where it would be one in JSON, and else a string. What YAML 1.1 takes for something else (`on`,
`12:30`, `010`, a date) is refused, and so are tags, anchors and aliases. Nothing here knows what a
document may hold.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

from tidegate.keyspace.documents.decode import shown

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_JSON_SCALAR: Final = re.compile(r"null|true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DECODER: Final = json.JSONDecoder()
_STRING: Final = "tag:yaml.org,2002:str"
_YAML_1_1: Final = yaml.resolver.Resolver()
_FIRST_LINE: Final = 1
_DEEPEST: Final = 64  # libyaml takes time by the square of the depth


class Entry(NamedTuple):
    """A document in a file: its name there, the line of that name, and its JSON."""

    name: str
    line: int
    value: bytes


class TextError(ValueError):
    """A text is not JSON or not YAML, or not of the shape that is expected."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


def is_json(text: str) -> bool:
    """Say whether a text without a file's suffix is to be read as JSON."""
    return text.lstrip()[:1] in ("{", "[")


def json_entries(text: str) -> list[Entry]:
    """Return the members of a JSON object.

    Raises:
        TextError: the text is not one.
    """
    try:
        return _members(text)
    except json.JSONDecodeError as error:
        raise TextError(error.lineno, f"the file is not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise TextError(_FIRST_LINE, "the file is nested too deeply") from error
    except TextError:
        raise
    except ValueError as error:  # too many digits in a number
        raise TextError(_FIRST_LINE, f"the file is not plain JSON: {error}") from error


def json_fault(text: str) -> int:
    """Return the line at which a text stops being JSON; 1 if it is JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno
    except (RecursionError, ValueError):
        return _FIRST_LINE
    return _FIRST_LINE


def _members(text: str) -> list[Entry]:
    at = _after_space(text, 0)
    if text[at : at + 1] != "{":
        _DECODER.raw_decode(text, at)  # an error of its own, if it is no JSON at all
        raise TextError(_line(text, at), "the file does not hold a JSON object")
    found: list[Entry] = []
    line, seen = _FIRST_LINE, 0
    end = at = _after_space(text, at + 1)
    while text[at : at + 1] != "}" or found:
        line, seen = line + text.count("\n", seen, at), at
        name, start, end = _member(text, at)
        found.append(Entry(name, line, text[start:end].encode()))
        end = _after_space(text, end)
        if text[end : end + 1] != ",":
            break
        at = _after_space(text, end + 1)
    if text[end : end + 1] != "}":
        raise json.JSONDecodeError("expected a comma or the closing brace", text, end)
    end = _after_space(text, end + 1)
    if end != len(text):
        raise json.JSONDecodeError("unexpected text after the object", text, end)
    return found


def _member(text: str, at: int) -> tuple[str, int, int]:
    """Return the name that begins here, and where its value begins and ends."""
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("expected a name in double quotes", text, at)
    name, colon = _DECODER.raw_decode(text, at)
    colon = _after_space(text, colon)
    if text[colon : colon + 1] != ":":
        raise json.JSONDecodeError("expected a colon after a name", text, colon)
    start = _after_space(text, colon + 1)
    end = _DECODER.raw_decode(text, start)[1]
    # An escape may stand for half a character, which no key of etcd's has.
    return str(name).encode("utf-8", "backslashreplace").decode(), start, end


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def yaml_entries(text: str) -> list[Entry]:
    """Return the members of a YAML mapping.

    Raises:
        TextError: it is not one.
    """
    try:
        return list(_Yaml(text).members())
    except yaml.YAMLError as error:
        raise _syntax(error) from error


def yaml_document(text: str) -> bytes:
    """Return a YAML text as JSON.

    Raises:
        TextError: it is not YAML, or has something that JSON lacks.
    """
    try:
        return _Yaml(text).whole().encode()
    except yaml.YAMLError as error:
        raise _syntax(error) from error


def _syntax(error: yaml.YAMLError) -> TextError:
    mark = getattr(error, "problem_mark", None)
    line = _FIRST_LINE if mark is None else mark.line + 1
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return TextError(line, f"the file is not valid YAML: {problem}")


class _Level:
    """A mapping or sequence that is open, and how many nodes it has had."""

    def __init__(self, *, is_mapping: bool) -> None:
        self.is_mapping = is_mapping
        self.nodes = 0

    def separator(self) -> str:
        """Return what stands before the next node."""
        if self.nodes == 0:
            return ""
        return ":" if self.is_mapping and self.nodes % 2 else ","

    def wants_name(self) -> bool:
        """Say whether the next node is a name of a mapping."""
        return self.is_mapping and self.nodes % 2 == 0


class _Yaml:
    """One YAML document as a stream of events."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        next(self._events)  # the stream's beginning

    def members(self) -> Iterator[Entry]:
        """Yield the names and values of the mapping that the document is."""
        first = self._begin()
        if not isinstance(first, yaml.MappingStartEvent):
            raise TextError(_line_of(first), "the file does not hold a YAML mapping")
        _plain(first)
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            name = _name(event)
            value = self._json(next(self._events))
            yield Entry(name, _line_of(event), value.encode())
        self._end()

    def whole(self) -> str:
        """Return the document as JSON."""
        found = self._json(self._begin())
        self._end()
        return found

    def _begin(self) -> Any:  # noqa: ANN401 - PyYAML has no types
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise TextError(_FIRST_LINE, "the file is empty")
        return next(self._events)

    def _end(self) -> None:
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise TextError(_line_of(event), "the file holds a second YAML document (---)")

    def _json(self, event: Any) -> str:  # noqa: ANN401
        """Return the JSON of the node that begins with this event."""
        parts: list[str] = []
        levels: list[_Level] = []
        while True:
            if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                parts.append("}" if levels.pop().is_mapping else "]")
            else:
                is_name = bool(levels) and levels[-1].wants_name()
                if levels:
                    parts.append(levels[-1].separator())
                    levels[-1].nodes += 1
                if is_name:
                    parts.append(json.dumps(_name(event)))
                elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                    _plain(event)
                    if len(levels) == _DEEPEST:
                        raise TextError(_line_of(event), "the file is nested too deeply")
                    levels.append(_Level(is_mapping=isinstance(event, yaml.MappingStartEvent)))
                    parts.append("{" if levels[-1].is_mapping else "[")
                else:
                    parts.append(_scalar(event))
            if not levels:
                return "".join(parts)
            event = next(self._events)


def _plain(event: Any) -> None:  # noqa: ANN401
    """Refuse what only YAML has."""
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise TextError(
            _line_of(event), "anchors and aliases are not supported; write the value out"
        )
    if event.tag is not None:
        raise TextError(_line_of(event), f"the tag {shown(event.tag)} is not supported; remove it")


def _name(event: Any) -> str:  # noqa: ANN401
    _plain(event)
    if not isinstance(event, yaml.ScalarEvent):
        raise TextError(_line_of(event), "a name is a list or a mapping; it must be a string")
    return str(event.value)


def _scalar(event: Any) -> str:  # noqa: ANN401
    _plain(event)
    text = str(event.value)
    if not event.implicit[0]:  # it is in quotes, or a block
        return json.dumps(text)
    if not text:
        return "null"
    if _JSON_SCALAR.fullmatch(text):
        return text
    meaning = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))
    if meaning != _STRING:
        kind = meaning.rpartition(":")[2]
        raise TextError(
            _line_of(event),
            f"{shown(text)} without quotes is a {kind} to some readers of YAML and a string to "
            "others; put it in quotes, or write it as JSON would",
        )
    return json.dumps(text)


def _line_of(event: Any) -> int:  # noqa: ANN401
    return int(event.start_mark.line) + 1
