# SPDX-License-Identifier: Apache-2.0
"""The table `[telemetry]` of the agent's file; docs/telemetry.md.

With the defaults nothing leaves the host and nothing listens on the network.
"""

from msgspec import Struct

from tidegate.telemetry.endpoint import PrometheusSettings


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is measured.

    Attributes:
        program_stats: have the kernel measure the time of each run of the program. It does so for
            every BPF program of the host, which costs some 20 ns a run.
    """

    program_stats: bool = False


class TelemetrySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything about telemetry."""

    metrics: MetricsSettings = MetricsSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
