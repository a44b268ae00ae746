# SPDX-License-Identifier: Apache-2.0
"""The keyspace: everything that Tidegate knows about etcd, and nothing about packets.

`Watch` turns a prefix into consistent snapshots, `validate` turns a snapshot into what the operator
wants plus a list of refusals, `StatusWriter` tells the fleet what this host did. No other package
imports etcd3 or grpc.
"""
