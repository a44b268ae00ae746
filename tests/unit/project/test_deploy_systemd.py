# SPDX-License-Identifier: Apache-2.0
"""The unit for systemd: an agent that ends comes back, however often."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
UNIT = ROOT / "deploy/systemd/tidegate-agent.service"


def test_the_agent_is_started_again_without_a_limit() -> None:
    """After any exit and within seconds; systemd's own limit of five starts is off."""
    unit = ConfigParser(interpolation=None)

    unit.read_string(UNIT.read_text("utf-8"))
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert unit["Service"]["Restart"] == "always"
    assert float(unit["Service"]["RestartSec"]) <= 5
    assert unit["Service"]["Type"] == "notify"
