# SPDX-License-Identifier: Apache-2.0
"""Traces of changes and of sampled flows, put together from what the loop and the kernel report."""
