# SPDX-License-Identifier: Apache-2.0
"""Finds out which backends work, as clients would. Knows neither etcd nor BPF maps."""
