# SPDX-License-Identifier: Apache-2.0
"""A pinned data plane whose maps have another size or shape: copied while it forwards, replaced."""
