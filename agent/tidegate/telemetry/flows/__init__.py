# SPDX-License-Identifier: Apache-2.0
"""Spans of sampled flows, from kernel events."""
