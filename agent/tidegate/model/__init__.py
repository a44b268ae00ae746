# SPDX-License-Identifier: Apache-2.0
"""Values: VIPs, pools, backends, documents, tables and generations.

Everything here is frozen and typed. Nothing here does I/O or reads a clock.
"""
