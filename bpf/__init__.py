# SPDX-License-Identifier: GPL-2.0-only
"""BPF sources as package data: `tidegate.bpf` in the wheel, `bpf/` in the checkout."""
