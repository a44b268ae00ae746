# SPDX-License-Identifier: Apache-2.0
"""What the agent exports about itself: traces, metrics and logs, over OTLP and for Prometheus.

The only package that imports OpenTelemetry. It gets all data from agent/, and imports neither
keyspace nor dataplane nor health.
"""
