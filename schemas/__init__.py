# SPDX-License-Identifier: Apache-2.0
"""JSON Schema 2020-12 of every document that Tidegate reads or writes, as package data.

The files are exported from the structs of `tidegate.model.documents`, `tidegate.model.steering` and
`tidegate.keyspace.status` by `python -m tidegate.keyspace.schema`, and are the public contract.
There is no code here.
"""
