# SPDX-License-Identifier: Apache-2.0
"""Plan the next generation from what is wanted and what is in force: pure functions, no clock."""

from tidegate.planner.clock import after_step
from tidegate.planner.generations import confirm, next_moment, plan
from tidegate.planner.pools import current_table

__all__ = ["after_step", "confirm", "current_table", "next_moment", "plan"]
