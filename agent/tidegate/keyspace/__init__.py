# SPDX-License-Identifier: Apache-2.0
"""The keyspace: everything that Tidegate knows about etcd, and nothing about packets.

`etcd.watch` turns a prefix into consistent snapshots, `documents.validate` turns a snapshot into
what the operator wants plus a list of refusals, `status.writer` publishes what this host did.
"""
