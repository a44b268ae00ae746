# SPDX-License-Identifier: Apache-2.0
"""Maglev tables: which backend owns each slot, and how good a table is.

Pure functions over values: no I/O, no clock, no ids. `build` names a backend by its place in the
order of names; the planner turns places into ids. The method and its figures are in docs/maglev.md.
"""

from tidegate.maglev.construction import MAX_WEIGHT, build
from tidegate.maglev.measures import Disruption, bound, disruption, exchangeable, share

__all__ = ["MAX_WEIGHT", "Disruption", "bound", "build", "disruption", "exchangeable", "share"]
