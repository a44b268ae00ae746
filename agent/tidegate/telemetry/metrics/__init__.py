# SPDX-License-Identifier: Apache-2.0
"""Metric points, their text exposition and the endpoint that serves them."""
