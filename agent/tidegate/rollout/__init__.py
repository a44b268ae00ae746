# SPDX-License-Identifier: Apache-2.0
"""Releases in waves over a fleet, and the writing of documents as one transaction."""
