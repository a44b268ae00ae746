# SPDX-License-Identifier: Apache-2.0
"""What hosts say of backends, as values; the documents of it are in `steering`."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from tidegate.model.values import BackendKey


class Vote(NamedTuple):
    """One host's verdict on one backend that it has made up its mind about.

    Attributes:
        since: wall-clock second at which the host came to it.
        has_recovered: whether the host has seen it unhealthy before.
    """

    is_healthy: bool
    since: int
    has_recovered: bool = False


Votes: TypeAlias = Mapping[str, Mapping[BackendKey, Vote]]
"""By host, then by backend."""
