# SPDX-License-Identifier: Apache-2.0
"""A strict reader of logfmt, which knows nothing of what writes it."""

import json
import re

_PAIR = re.compile(r'([a-z][a-z0-9_.]*)=([^\s"=]+|"(?:[^"\\]|\\.)*")(?: |$)')


def read(line: str) -> dict[str, str]:
    """Return the fields of a line.

    Raises:
        ValueError: some of it is no `name=value` with a value that is quoted where it must be.
    """
    fields: dict[str, str] = {}
    at = 0
    while at < len(line):
        pair = _PAIR.match(line, at)
        if pair is None or pair[1] in fields:
            raise ValueError(f"no field of its own at {at}: {line[at : at + 60]!r}")
        fields[pair[1]] = json.loads(pair[2]) if pair[2].startswith('"') else pair[2]
        at = pair.end()
    return fields
