# SPDX-License-Identifier: Apache-2.0
"""The one registry of what telemetry is called; each part of telemetry has a module here.

docs/telemetry.md has these definitions as tables, which `tidegate.telemetry.doc_tables` writes.
"""
