# SPDX-License-Identifier: Apache-2.0
"""System calls, maps and programs: what the kernel is given and what it holds."""
