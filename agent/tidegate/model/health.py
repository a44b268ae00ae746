# SPDX-License-Identifier: Apache-2.0
"""The hosts' votes on backends, as values; their documents are in `steering`."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from tidegate.model.values import BackendKey


class Vote(NamedTuple):
    """One host's decided verdict on one backend.

    Attributes:
        since: wall-clock second of the verdict.
        has_recovered: whether the host has seen it unhealthy before.
    """

    is_healthy: bool
    since: int
    has_recovered: bool = False


Votes: TypeAlias = Mapping[str, Mapping[BackendKey, Vote]]
"""By host, then by backend."""
