# SPDX-License-Identifier: Apache-2.0
"""The etcd of a lab, for tests that freeze or kill it."""

from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab


def etcd_pid(lab: Lab) -> int:
    """Return the process id of etcd on the control node, where etcdctl may run as well."""
    nodes = {node["name"]: node for node in lab.status()["nodes"]}
    running = nodes[CONTROL]["processes"]
    found = [each["pid"] for each in running if each["command"].split(" ")[0] == "etcd"]
    assert len(found) == 1, running
    return int(found[0])
