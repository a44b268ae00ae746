# SPDX-License-Identifier: Apache-2.0
"""What the agent tells the world about itself: traces, metrics and logs over OTLP and Prometheus.

The only place that knows OpenTelemetry. It is told everything by agent/, and never asks: it imports
neither keyspace nor dataplane nor health.
"""
