# SPDX-License-Identifier: Apache-2.0
"""The table `[telemetry]`: what is refused, and with which words."""

import pytest

from tidegate.errors import ConfigError
from tidegate.telemetry.export.settings import TelemetrySettings, check


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": "127.0.0.1:4317"}, "must be a URL with a port"),
        ({"endpoint": "http://collector"}, "must be a URL with a port"),
        ({"endpoint": "http://collector:999999"}, "must be a URL with a port"),
        ({"endpoint": "https://me:pass@collector:1"}, "telemetry.headers_file"),
        ({"endpoint": "http://collector:1/otlp"}, "gRPC has none"),
        ({"endpoint": "http://collector:1", "headers_file": "/h"}, "in plain text"),
        ({"endpoint": "http://collector:1", "ca": "/ca"}, "telemetry.ca is used with TLS only"),
        ({"cert": "/cert"}, "telemetry.key is missing"),
        ({"key": "/key"}, "telemetry.cert is missing"),
    ],
)
def test_refuses_what_contradicts_itself(settings: dict[str, str], words: str) -> None:
    """The message names the key and what to do."""
    with pytest.raises(ConfigError, match=words) as caught:
        check(TelemetrySettings(**settings))  # type: ignore[arg-type]
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"endpoint": "http://127.0.0.1:4317", "headers_file": "/h"},
        {"endpoint": "http://[::1]:4317"},
        {"endpoint": "http://collector:4318/otlp", "protocol": "http"},
        {"endpoint": "https://collector:4317", "ca": "/a", "cert": "/b", "key": "/c"},
    ],
)
def test_accepts_what_makes_sense(settings: dict[str, str]) -> None:
    """Nothing at all, plain text on loopback, and TLS anywhere."""
    check(TelemetrySettings(**settings))  # type: ignore[arg-type]
