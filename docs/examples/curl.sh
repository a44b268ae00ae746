#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A service in one transaction, a release by one pointer, a host's answer: curl and etcd's JSON
# gateway, which takes and gives keys and values in base64.
#
#   ./curl.sh http://127.0.0.1:2379 /tidegate/edge lb1
set -eu
etcd=$1 fleet=$2 host=$3
release=$fleet/config/curl-1
web=$release/pools/web

b64() { printf %s "$1" | base64 | tr -d '\n'; }
put() { printf '{"key": "%s", "value": "%s"}' "$(b64 "$1")" "$(b64 "$2")"; }
call() { curl --silent --show-error --fail --max-time 10 "$etcd/v3/$1" --data "$2"; }

# All of it becomes one generation on every host, or none of it.
call kv/txn "{\"success\": [
  {\"request_put\": $(put "$web" '{"deregistration_delay": 60}')},
  {\"request_put\": $(put "$web/backends/a" '{"address": "198.51.100.7"}')},
  {\"request_put\": $(put "$web/backends/b" '{"address": "198.51.100.8", "weight": 50}')},
  {\"request_put\": $(put "$release/vips/shop" \
    '{"address": "192.0.2.10", "port": 443, "protocol": "tcp", "pool": "web"}')}
]}"

# A backend that goes away is deleted: it drains by itself.
call kv/deleterange "{\"key\": \"$(b64 "$web/backends/b")\"}"

# Every host on the track moves to the release at once; the same write again is the way back.
call kv/put "$(put "$fleet/tracks/stable" '{"release": "curl-1"}')"
echo

# What a host says of it: in force, or refused and why.
call kv/range "{\"key\": \"$(b64 "$fleet/status/$host")\"}" |
    sed -n 's/.*"value":"\([^"]*\)".*/\1/p' | base64 --decode
