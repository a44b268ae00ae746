# SPDX-License-Identifier: Apache-2.0
"""The agent: one loop that turns snapshots, time and link changes into generations."""
