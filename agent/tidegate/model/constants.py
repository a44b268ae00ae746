# SPDX-License-Identifier: Apache-2.0
"""Build constants that the planner, the data plane and the specification share."""

from typing import Final

TABLE_SIZE: Final = 65537
"""Slots of a Maglev table: a prime, more than 100 times the backends of a pool (NSDI'16 §3.4)."""

MAX_VIPS: Final = 4096
"""VIP ids run from 1 to MAX_VIPS - 1."""

MAX_POOLS: Final = 1024
"""Pool ids, which are slots of the outer map, run from 1 to MAX_POOLS - 1."""

MAX_BACKENDS: Final = 65536
"""Backend ids run from 1 to MAX_BACKENDS - 1; id 0 is never a backend."""

ID_COOLDOWN_SECONDS: Final = 3600
"""A freed id rests this long, which is longer than any flow may stay idle."""
