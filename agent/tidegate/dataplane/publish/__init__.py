# SPDX-License-Identifier: Apache-2.0
"""How a generation comes into force: map writes in order, read back, recorded, repaired."""
