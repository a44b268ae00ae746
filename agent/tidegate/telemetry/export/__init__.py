# SPDX-License-Identifier: Apache-2.0
"""What leaves the process: OTLP over gRPC or HTTP, from bounded queues."""
