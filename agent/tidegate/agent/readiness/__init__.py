# SPDX-License-Identifier: Apache-2.0
"""Whether this host may receive traffic, and how files, systemd and routers learn of it."""
