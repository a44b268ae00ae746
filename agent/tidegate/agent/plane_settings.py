# SPDX-License-Identifier: Apache-2.0
"""What of the agent's file the data plane is told. Opens nothing."""

from pathlib import Path

from tidegate.agent.config import AgentConfig
from tidegate.dataplane.plane import Settings


def plane_settings(config: AgentConfig) -> Settings:
    """The data plane's part."""
    return Settings(
        pins=Path(config.pin_dir),
        interfaces=config.interfaces,
        mode=config.xdp_mode,
        build=config.build(),
        capacity=config.table_capacity(),
        gateways=config.gateways(),
        grace=config.grace_delay,
        probe_tunnel=config.probe_tunnel,
    )
