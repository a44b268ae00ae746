# SPDX-License-Identifier: Apache-2.0
"""The host's network as the kernel tells it: devices, next hops, neighbours, merged frames."""
