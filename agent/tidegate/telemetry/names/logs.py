# SPDX-License-Identifier: Apache-2.0
"""Attributes of log records."""

from typing import Final

from tidegate.telemetry.registry import OWN, Attribute

LOGGER: Final = Attribute(
    "tidegate.log.logger",
    "string",
    "The module of the agent that logs it.",
    "tidegate.agent.loop",
)
FIELD: Final = Attribute(
    "tidegate.log.FIELD",
    "string",
    "A field of the event, each as an attribute of its own and of the type of its value.",
    "tidegate.log.number",
)

LOGS: Final = (LOGGER, FIELD)


def field_key(name: str) -> str:
    """Return the attribute that a field of an event becomes."""
    return FIELD.key.replace("FIELD", name)


def event_name(name: str) -> str:
    """Return what OpenTelemetry calls an event of ours."""
    return OWN + name
