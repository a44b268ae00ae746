# SPDX-License-Identifier: Apache-2.0
"""A backend's fitness, from this host's own checks and the fleet's verdicts."""
