# SPDX-License-Identifier: Apache-2.0
"""Whose checks are late: no probe of theirs has ended for longer than their pool's limit.

A finding stands for as long as probes confirm it. When they stop, because the checker does not get
the CPU, one of them never ends, or the process was frozen, it says nothing any more: neither that
the backend is well nor that it is dead.

The limit is three intervals, with their jitter, and a timeout more, since the last probe may take
that long. One moment that is left out after a pause, and one that is skipped for a slow probe, are
thus no lateness. It is never less than two seconds: an interpreter can be that busy.

Within a pool, who was heard of longest ago is first, so a look costs what is late and no more.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Final

from tidegate.model.checks import Check
from tidegate.model.values import BackendKey

_INTERVALS: Final = 3
_LEAST: Final = 2.0


def limit(check: Check) -> float:
    """Return the seconds without a probe's end after which a finding counts no more."""
    return (
        max(_INTERVALS * check.interval * (1 + check.jitter_percent / 100), _LEAST) + check.timeout
    )


class Freshness:
    """When each backend's last probe ended; times are of one clock that is never stepped."""

    def __init__(self) -> None:
        self._limits: Mapping[str, float] = {}
        self._heard: dict[str, OrderedDict[BackendKey, float]] = {}

    def follow(self, limits: Mapping[str, float], keys: Collection[BackendKey], now: float) -> None:
        """Watch these; one that is new has its limit's time from now on.

        Args:
            limits: seconds, by pool; of all pools of the keys.
            keys: backends that are probed.
            now: s.
        """
        before = {key: moment for each in self._heard.values() for key, moment in each.items()}
        self._limits = limits
        self._heard = {pool: OrderedDict() for pool in limits}
        for key in sorted(keys, key=lambda key: before.get(key, now)):
            self._heard[key.pool][key] = before.get(key, now)

    def heard(self, key: BackendKey, now: float) -> None:
        """Take note that a probe has ended."""
        of_pool = self._heard[key.pool]
        of_pool[key] = now
        of_pool.move_to_end(key)

    def late(self, now: float) -> dict[BackendKey, float]:
        """Return those that are late, each with its limit, s."""
        found: dict[BackendKey, float] = {}
        for pool, of_pool in self._heard.items():
            allowed = self._limits[pool]
            for key, moment in of_pool.items():
                if now - moment <= allowed:
                    break
                found[key] = allowed
        return found
