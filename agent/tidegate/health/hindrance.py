# SPDX-License-Identifier: Apache-2.0
"""Which backends this host could not probe lately, by its own fault, in words for a person.

A backend is among them from a probe that could not be made until one that could, whatever that one
found. It says what lacks, not what it means: a backend that is not probed keeps its standing.
"""

from collections.abc import Collection
from typing import Final

from tidegate.health.result import Result
from tidegate.model.values import BackendKey

_NAMED: Final = 3
"""Backends that a sentence names."""


class Hindrances:
    """Backends that could not be probed, each with the reason. Its owner has the lock."""

    def __init__(self) -> None:
        self._reasons: dict[BackendKey, str] = {}

    def note(self, key: BackendKey, result: Result) -> bool:
        """Take a result; return whether there is a hindrance now and was none, or the reverse."""
        had_any = bool(self._reasons)
        if result.is_finding:
            if had_any:
                self._reasons.pop(key, None)
        else:
            # The latest comes last: its reason is the one that is told.
            self._reasons.pop(key, None)
            self._reasons[key] = result.reason
        return had_any != bool(self._reasons)

    def keep(self, keys: Collection[BackendKey]) -> None:
        """Forget the backends that are not probed any more."""
        self._reasons = {key: why for key, why in self._reasons.items() if key in keys}

    def sentence(self) -> str:
        """Return how many backends, some of their names, and the last reason; empty for none."""
        if not self._reasons:
            return ""
        total, last = len(self._reasons), next(reversed(self._reasons.values()))
        names = ", ".join(str(key) for key in sorted(self._reasons)[:_NAMED])
        more = f" and {total - _NAMED} more" if total > _NAMED else ""
        return f"This host cannot probe {names}{more}, which says nothing about them: {last}"
