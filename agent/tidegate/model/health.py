# SPDX-License-Identifier: Apache-2.0
"""The hosts' votes on backends, as values; their documents are in `steering`."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from tidegate.model.values import BackendKey


class Vote(NamedTuple):
    """One host's decided verdict on one backend.

    Attributes:
        since: second of the verdict. As it was written: of its writer's wall clock. Once it was
            dated by its receiver: of the receiver's monotonic clock, and it is judged by that.
        has_recovered: whether the host has seen it unhealthy before.
    """

    is_healthy: bool
    since: float
    has_recovered: bool = False


Votes: TypeAlias = Mapping[str, Mapping[BackendKey, Vote]]
"""By host, then by backend."""
