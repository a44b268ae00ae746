# SPDX-License-Identifier: Apache-2.0
"""Documents of the keyspace: read, validated and built into typed values. No I/O with etcd."""
