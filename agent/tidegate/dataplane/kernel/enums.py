# SPDX-License-Identifier: Apache-2.0
"""The enums of `tidegate.model.decision` as C.

`python -m tidegate.dataplane.kernel.enums > bpf/enums.h` renews the header; a unit test compares
the two.
"""

import sys
from enum import IntEnum

from tidegate.model.decision import Decision, EventKind, Reason


def enum_text(kind: type[IntEnum], prefix: str, count: str) -> str:
    """Return an enum as C: members with a prefix, then their number under the name `count`."""
    lines = [f"\t{prefix}{member.name} = {member.value}," for member in kind]
    return "\n".join(["enum {", *lines, f"\t{count} = {len(kind)},", "};"])


def render() -> str:
    """Return the text of `bpf/enums.h`."""
    return "\n".join(
        [
            "/* SPDX-License-Identifier: GPL-2.0-only */",
            "/* Generated from agent/tidegate/model/decision.py, where each has its meaning.",
            " * Renew with: python -m tidegate.dataplane.kernel.enums > bpf/enums.h */",
            "#pragma once",
            "",
            enum_text(Decision, "BY_", "DECISIONS"),
            "",
            enum_text(Reason, "DROP_", "REASONS"),
            "",
            enum_text(EventKind, "EVENT_", "EVENT_KINDS"),
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(render())
