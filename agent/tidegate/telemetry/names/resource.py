# SPDX-License-Identifier: Apache-2.0
"""Attributes of the resource: on everything that one agent sends."""

from typing import Final

from tidegate.telemetry.registry import Attribute

SERVICE_NAME: Final = Attribute(
    "service.name", "string", "Always `tidegate`.", "tidegate", is_standard=True
)
SERVICE_VERSION: Final = Attribute(
    "service.version", "string", "Version of the agent.", "0.1.0", is_standard=True
)
SERVICE_NAMESPACE: Final = Attribute(
    "service.namespace", "string", "The fleet.", "default", is_standard=True
)
SERVICE_INSTANCE: Final = Attribute(
    "service.instance.id",
    "string",
    "Fleet and host: one agent, over all its restarts.",
    "default/lb1",
    is_standard=True,
)
HOST_NAME: Final = Attribute(
    "host.name", "string", "The host, as the keyspace calls it.", "lb1", is_standard=True
)
HOST_ARCH: Final = Attribute(
    "host.arch", "string", "Its processor's architecture.", "amd64", is_standard=True
)
OS_TYPE: Final = Attribute("os.type", "string", "Always `linux`.", "linux", is_standard=True)
OS_VERSION: Final = Attribute(
    "os.version", "string", "Release of the running kernel.", "6.1.0-18-amd64", is_standard=True
)
PROCESS_PID: Final = Attribute(
    "process.pid", "int", "Process id of the agent.", "4711", is_standard=True
)
FLEET: Final = Attribute(
    "tidegate.fleet", "string", "The fleet that the host belongs to.", "default"
)

RESOURCE: Final = (
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    SERVICE_INSTANCE,
    SERVICE_VERSION,
    HOST_NAME,
    HOST_ARCH,
    OS_TYPE,
    OS_VERSION,
    PROCESS_PID,
    FLEET,
)
