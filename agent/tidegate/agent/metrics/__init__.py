# SPDX-License-Identifier: Apache-2.0
"""Metric points of this host, collected from the data plane, the health checks and etcd."""
