# SPDX-License-Identifier: Apache-2.0
"""Parse waves and criteria as people write them: `canary,25%,100%`, `nack,drops=0.1%`.

Which hosts a wave has is decided elsewhere.
"""

import math
import re
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple

from tidegate.errors import ConfigError
from tidegate.keyspace.paths import NAME_RULE, is_name
from tidegate.model.rollout import CriteriaDocument

DEFAULT_CRITERIA: Final = "nack,degraded,vanished,digest"
_SWITCHES: Final = ("nack", "degraded", "vanished", "digest")
_LIMITS: Final = ("drops", "misses", "unhealthy")
_ALL: Final = 100.0


class Wave(NamedTuple):
    """How far a wave goes: all hosts of a track, or up to a share or a number of all hosts."""

    kind: Literal["track", "share", "count"]
    track: str = ""
    amount: float = 0.0

    def target(self, hosts: int) -> int:
        """Return how many of `hosts` have been moved at its end; not for tracks."""
        if self.kind == "share":
            return math.ceil(hosts * self.amount / _ALL - 1e-9)
        return min(int(self.amount), hosts)


def parse_wave(text: str) -> Wave:
    """Parse one wave.

    Raises:
        ConfigError: it is not a wave.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text):
        share = float(text[:-1])
        if not 0 < share <= _ALL:
            raise ConfigError(f"wave {text!r}: a share is more than 0% and at most 100%")
        return Wave("share", amount=share)
    if text.isascii() and text.isdigit():
        if int(text) == 0:
            raise ConfigError(f"wave {text!r}: a wave needs at least one host")
        return Wave("count", amount=float(text))
    if not is_name(text):
        raise ConfigError(
            f"wave {text!r} is not a share (25%), a number of hosts (3) or the name of a track; "
            f"{NAME_RULE}"
        )
    return Wave("track", track=text)


def parse_waves(text: str) -> tuple[str, ...]:
    """Parse waves separated by commas.

    Raises:
        ConfigError: one is not a wave, they do not grow, or the last is not all hosts.
    """
    texts = tuple(part.strip() for part in text.split(","))
    waves = [parse_wave(part) for part in texts]
    for kind in ("share", "count"):
        amounts = [wave.amount for wave in waves if wave.kind == kind]
        if any(later <= earlier for earlier, later in pairwise(amounts)):
            raise ConfigError(
                f"--waves {text}: each wave must go further than the one before; a share or number "
                "counts all hosts that have been moved, those of earlier waves included"
            )
    if waves[-1] != Wave("share", amount=_ALL):
        raise ConfigError(
            f"--waves {text}: the last wave must be 100%: a rollout ends with the release in force "
            "on whole tracks, so every host on them must have been watched with it first"
        )
    return texts


def parse_criteria(text: str) -> CriteriaDocument:
    """Parse what makes a rollout fail: names, and limits as `name=percent%`.

    Raises:
        ConfigError: a criterion is not known.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, limit = part.partition("=")
        if name in _SWITCHES and not equals:
            found[name] = True
        elif name in _LIMITS and re.fullmatch(r"[0-9]+(\.[0-9]+)?%", limit):
            found[name] = float(limit[:-1])
            if found[name] > _ALL:
                raise ConfigError(f"--abort-on {part}: a share is at most 100%")
        else:
            limits = ", ".join(f"{each}=0.1%" for each in _LIMITS)
            raise ConfigError(
                f"--abort-on {part}: it must be one of {', '.join(_SWITCHES)}, {limits} "
                "(percentage points above the hosts that were not moved)"
            )
    return CriteriaDocument(**found)
