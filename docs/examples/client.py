# SPDX-License-Identifier: Apache-2.0
"""A service in one transaction, a release by one pointer, a host's answer: the package etcd3.

    PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=python client.py 127.0.0.1:2379 /tidegate/edge lb1

The variable is etcd3's need, not Tidegate's: its messages were generated for an older protobuf.
"""

import json
import sys

import etcd3


def main(endpoint: str, fleet: str, host: str) -> None:
    """Write, steer, read."""
    name, _, port = endpoint.rpartition(":")
    etcd = etcd3.client(host=name, port=int(port), timeout=5)
    put = etcd.transactions.put

    # All of it becomes one generation on every host, or none of it.
    release = f"{fleet}/config/python-1"
    web = f"{release}/pools/web"
    shop = {"address": "192.0.2.10", "port": 443, "protocol": "tcp", "pool": "web"}
    etcd.transaction(
        compare=[],
        success=[
            put(web, json.dumps({"deregistration_delay": 60})),
            put(f"{web}/backends/a", json.dumps({"address": "198.51.100.7"})),
            put(f"{web}/backends/b", json.dumps({"address": "198.51.100.8", "weight": 50})),
            put(f"{release}/vips/shop", json.dumps(shop)),
        ],
        failure=[],
    )

    # A backend that goes away is deleted: it drains by itself.
    etcd.delete(f"{web}/backends/b")

    # Every host on the track moves to the release at once; the same write again is the way back.
    etcd.put(f"{fleet}/tracks/stable", json.dumps({"release": "python-1"}))

    # What a host says of it: in force, or refused and why.
    value, _ = etcd.get(f"{fleet}/status/{host}")
    if value is not None:
        status = json.loads(value)
        print(status["state"], "generation", status["generation"])
        for refusal in status["refusals"]:
            print(f"{refusal['key']}: {refusal['reason']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
