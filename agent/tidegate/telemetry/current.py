# SPDX-License-Identifier: Apache-2.0
"""Which trace what is being done now belongs to, for what is logged meanwhile.

Each thread has its own. Only a context is kept here: spans are made when the work is over.
"""

from contextvars import ContextVar
from typing import Final

from tidegate.telemetry.span import Context

CURRENT: Final[ContextVar[Context | None]] = ContextVar("tidegate_trace", default=None)
"""The span that is under way in this thread; None outside of all."""
