# SPDX-License-Identifier: Apache-2.0
"""The agent: one queue that turns snapshots, timers and link changes into generations in the kernel."""
