# SPDX-License-Identifier: Apache-2.0
"""Ends of the tunnel beside the balancer: decapsulation at backends, probes on load balancers."""
