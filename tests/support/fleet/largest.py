# SPDX-License-Identifier: Apache-2.0
"""A fleet as large as the documentation promises, and its documents' way into etcd.

    python -m support.fleet.largest ENDPOINT RELEASE POOLS BACKENDS WEIGHT

writes the documents of a release: that many pools with a VIP each, and that many backends in all.
It takes a network namespace of its own to reach a lab's etcd, so it is a process of its own.
"""

import json
import sys
from collections.abc import Iterator

from tidegate.keyspace import paths
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.lab.agents import FLEET, ROOT

_BATCH = 120
"""etcd takes 128 operations in a transaction."""


def documents(pools: int, backends: int, weight: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield keys, relative to a release, and documents; with another weight all have another."""
    for pool in range(pools):
        yield f"pools/p{pool}", {}
        address = f"198.18.{pool >> 8}.{pool & 255}"
        document = {"address": address, "port": 443, "protocol": "tcp", "pool": f"p{pool}"}
        yield f"vips/v{pool}", dict(document)
    for number in range(backends):
        address = f"10.{100 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        key = f"pools/p{number % pools}/backends/b{number}"
        yield key, {"address": address, "weight": weight if number % 2 else 200 - weight}


def write(endpoint: str, release: str, pools: int, backends: int, weight: int) -> None:
    """Write them."""
    prefix = paths.release_prefix(ROOT, FLEET, release)
    connection = Etcd(EtcdSettings(endpoints=(endpoint,)))
    messages, found = connection.messages, list(documents(pools, backends, weight))
    for start in range(0, len(found), _BATCH):
        operations = [
            messages.RequestOp(
                request_put=messages.PutRequest(
                    key=f"{prefix}{key}".encode(), value=json.dumps(document).encode()
                )
            )
            for key, document in found[start : start + _BATCH]
        ]
        request = messages.TxnRequest(success=operations)
        connection._unary("write", lambda client: client.kvstub.Txn, request)
    connection.close()


if __name__ == "__main__":
    _, endpoint, release, *numbers = sys.argv
    write(endpoint, release, *map(int, numbers))
