# SPDX-License-Identifier: Apache-2.0
"""Attributes of log records."""

from typing import Final

from tidegate.telemetry.registry import Attribute

LOGGER: Final = Attribute(
    "tidegate.log.logger",
    "string",
    "The module of the agent that tells it.",
    "tidegate.agent.loop",
)

LOGS: Final = (LOGGER,)
