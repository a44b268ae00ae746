# SPDX-License-Identifier: Apache-2.0
"""The connection to etcd: client, list and watch, transactions, leases."""
