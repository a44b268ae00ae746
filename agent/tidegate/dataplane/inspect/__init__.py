# SPDX-License-Identifier: Apache-2.0
"""Read-only views of a live data plane: flows, events, counters, forecasts, simulation."""
