# SPDX-License-Identifier: Apache-2.0
"""What one probe found out."""

from typing import Literal, NamedTuple, TypeAlias

Code: TypeAlias = Literal[
    "passed",
    "timeout",
    "refused",
    "reset",
    "unreachable",
    "mismatch",
    "certificate",
    "error",
    "host",
]


class Result(NamedTuple):
    """One probe's outcome.

    Attributes:
        code: `passed`, or how it failed; `host` if this host could not ask, so that it says nothing
            about the backend (`blame`).
        reason: a sentence about the failure; empty when it passed.
        seconds: from the probe's start to its end.
    """

    code: Code
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the backend answered as it should."""
        return self.code == "passed"

    @property
    def is_finding(self) -> bool:
        """Whether it says anything about the backend."""
        return self.code != "host"
