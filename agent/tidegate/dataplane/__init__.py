# SPDX-License-Identifier: Apache-2.0
"""The only place that knows bcc, BPF maps and links: compile, load, adopt, attach, publish."""
