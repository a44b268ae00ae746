# SPDX-License-Identifier: Apache-2.0
"""The settings of the data plane, from the agent's file. Opens nothing."""

from pathlib import Path

from tidegate.agent.config import AgentConfig
from tidegate.dataplane.kernel.owner import Owner
from tidegate.dataplane.settings import Settings


def plane_settings(config: AgentConfig) -> Settings:
    """Return the data plane's settings."""
    return Settings(
        pins=Path(config.pin_dir),
        interfaces=config.interfaces,
        mode=config.xdp_mode,
        build=config.build(),
        gateways=config.gateways(),
        grace=config.grace_delay,
        probe_tunnel=config.probe_tunnel,
        merging_off=config.merging_off,
        macs=config.macs(),
        owner=Owner(config.fleet, config.host),
    )
