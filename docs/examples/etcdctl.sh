#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A service in one transaction, a release by one pointer, a host's answer: etcdctl.
#
#   ETCDCTL_ENDPOINTS=127.0.0.1:2379 ./etcdctl.sh /tidegate/edge lb1
set -eu
export ETCDCTL_API=3
fleet=$1 host=$2
release=$fleet/config/etcdctl-1
web=$release/pools/web

# All of it becomes one generation on every host, or none of it. (Between the empty lines: conditions,
# of which there are none; what to do; what to do if a condition does not hold.)
etcdctl txn <<END

put $web "{\"deregistration_delay\": 60}"
put $web/backends/a "{\"address\": \"198.51.100.7\"}"
put $web/backends/b "{\"address\": \"198.51.100.8\", \"weight\": 50}"
put $release/vips/shop "{\"address\": \"192.0.2.10\", \"port\": 443, \"protocol\": \"tcp\", \"pool\": \"web\"}"


END

# A backend that goes away is deleted: it drains by itself.
etcdctl del "$web/backends/b"

# Every host on the track moves to the release at once; the same write again is the way back.
etcdctl put "$fleet/tracks/stable" '{"release": "etcdctl-1"}'

# What a host says of it: in force, or refused and why.
etcdctl get --print-value-only "$fleet/status/$host"
