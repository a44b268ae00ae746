# SPDX-License-Identifier: Apache-2.0
"""Tidegate: an XDP layer-4 load balancer that is driven by etcd."""

__version__ = "0.1.0"
