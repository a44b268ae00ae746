# SPDX-License-Identifier: Apache-2.0
"""The control socket: what an operator of this host asks for, and how it is carried out."""
