# SPDX-License-Identifier: Apache-2.0
"""A lab whose load balancers check their backends, ways to break it, and what was measured."""

import base64
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from support.lab.long_flows import Flows
from tidegate.lab.agents import config_path
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import ECHO_PORT, HTTP_PORT, ROUTER, LabSpec
from tidegate.lab.rack import Lab

VERDICTS = "/tidegate/default/health/"
Document = Mapping[str, Any]
Status = dict[str, Any]


class CheckedLab(NamedTuple):
    """A lab whose agents have everything in force."""

    lab: Lab
    control: Control
    statuses: tuple[StatusWatch, ...]

    def wait(self, what: str, wanted: Callable[[Status], bool], timeout: float = 20) -> float:
        """Wait until all statuses are as wanted; return when the last one was seen to be."""
        return max(each.wait(what, wanted, timeout=timeout).at for each in self.statuses)

    def unhealthy(self, count: int) -> float:
        """Wait until all hosts have taken this many backends out; return when that was seen."""
        return self.wait(f"{count} unhealthy", lambda s: s["backends"]["unhealthy"] == count)

    def synced(self) -> None:
        """Wait until no host has anything to report."""
        self.wait("synced", lambda s: s["state"] == "synced")

    def flows(self) -> Flows:
        """Long-lived flows to every backend."""
        names = [node.name for node in self.lab.backends()]
        return Flows(self.lab, (str(self.lab.vip4()), str(self.lab.vip6())), names)

    def verdicts(self) -> dict[str, Any]:
        """Return every host's verdict by `host/pool/backend`, as far as they can be read."""
        found = json.loads(self.lab.etcdctl("get", "--prefix", VERDICTS, "-w", "json"))
        values = {_text(each["key"]): _text(each["value"]) for each in found.get("kvs", ())}
        return {
            key.removeprefix(VERDICTS): json.loads(value)
            for key, value in values.items()
            if value.startswith('{"state":')
        }

    def wait_for_verdicts(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the verdicts are as wanted; etcd is asked, as a person would."""
        deadline = time.monotonic() + 30
        while not wanted(found := self.verdicts()):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def wait_for_states(self, wanted: Mapping[str, int]) -> None:
        """Wait until there are so many verdicts of each state and no others."""
        self.wait_for_verdicts(lambda v: Counter(each["state"] for each in v.values()) == wanted)

    def answering(self, requests: int = 24, port: int = HTTP_PORT) -> set[str]:
        """Return the backends that answer a client's requests, none of which may fail."""
        urls = [f"http://{self.lab.vip4()}:{port}/"] * requests
        # Each on a connection of its own, and all in one process.
        command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5"]
        command += ["--header", "Connection: close", *urls]
        return set(self.lab.client(1).run(command).stdout.split())

    def wait_until_reached(self, backend: str, port: int = HTTP_PORT) -> None:
        """Wait until a backend answers new connections again."""
        deadline = time.monotonic() + 20
        while backend not in self.answering(24, port):
            assert time.monotonic() < deadline, f"{backend} gets nothing"


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


@contextmanager
def build_lab(
    spec: Mapping[str, int],
    pools: Mapping[str, Document],
    vips: Callable[[Lab], Mapping[str, Document]],
    families: Mapping[str, int],
    settings: str = "",
) -> Iterator[CheckedLab]:
    """Yield a lab whose agents have these documents in force.

    Args:
        spec: the lab's size.
        pools: by name; each has all backends.
        vips: by name, from the lab.
        families: of a backend's address, where it is not 4.
        settings: lines for the part `etcd` of the agents' files.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(LabSpec(name=f"t{secrets.token_hex(4)}", **spec)))
        control = Control(lab)
        for pool, document in pools.items():
            control.put(f"pools/{pool}", document)
            for node in lab.backends():
                address = str(lab.address(node.name, families.get(node.name, 4)))
                control.put(f"pools/{pool}/backends/{node.name}", {"address": address})
        for name, document in vips(lab).items():
            written = control.put(f"vips/{name}", document)
        statuses = tuple(stack.enter_context(StatusWatch(lab, lb.name)) for lb in lab.lbs())
        for lb in lab.lbs():
            path = config_path(lab.spec, lb.name)
            path.write_text(path.read_text().replace("[etcd]\n", f"[etcd]\n{settings}\n"))
            lab.start_agent(lb.name)
        for status in statuses:
            status.wait_applied(written.revision, timeout=60)
        yield CheckedLab(lab, control, statuses)


def web(lab: Lab) -> dict[str, Document]:
    """HTTP and echo VIPs of both families, all of the pool `web`."""
    return {
        f"{name}{vip.version}": {
            "address": str(vip),
            "port": port,
            "protocol": protocol,
            "pool": "web",
        }
        for vip in (lab.vip4(), lab.vip6())
        for name, port, protocol in (("web", HTTP_PORT, "tcp"), ("echo", ECHO_PORT, "udp"))
    }


def of_pools(
    addresses: Mapping[str, IPv4Address | IPv6Address], checked: Mapping[str, tuple[str, int]]
) -> dict[str, Document]:
    """HTTP and echo VIPs of each pool, at an address of its own, so its flows are told from others.

    Args:
        addresses: by pool.
        checked: protocol and port of one more VIP, for pools whose check goes elsewhere; by name it
            is the pool's first.
    """
    flows = {"echo": ("udp", ECHO_PORT), "web": ("tcp", HTTP_PORT)}
    return {
        f"{pool}-{name}": {
            "address": str(address),
            "port": port,
            "protocol": protocol,
            "pool": pool,
        }
        for pool, address in addresses.items()
        for name, (protocol, port) in (
            ({"check": checked[pool]} if pool in checked else {}) | flows
        ).items()
    }


def answers_to(lab: Lab, lb: str, backends: Iterable[str], *, lost: bool) -> None:
    """Whether what backends send to a load balancer itself, answers to probes, is lost."""
    verb = "add" if lost else "del"
    for backend in backends:
        for family in (4, 6):
            target = f"{lab.address(lb, family)}/{32 if family == 4 else 128}"
            lab.node(backend).run(["ip", f"-{family}", "route", verb, "blackhole", target])


def packets_to(lab: Lab, backend: str, *, lost: bool) -> None:
    """Whether all that is tunnelled to a backend is lost before it; what it sends arrives."""
    verb = "add" if lost else "del"
    lab.node(ROUTER).run(["ip", "route", verb, "blackhole", f"{lab.address(backend)}/32"])


class Row(NamedTuple):
    """What was measured of one failure; pytest's summary has them in one table."""

    failure: str
    found: str
    moved: str
    tcp: str
    udp: str
    others: str
    back: str = ""


def seconds(value: float | None) -> str:
    """For a table."""
    return "-" if value is None else f"{value:.2f} s"


def measured(
    failure: str, flows: Flows, victims: Iterable[str], found_at: float, back: float | None = None
) -> tuple[str, ...]:
    """Return a failure's `Row` once flows have settled; plain, as it goes to another process."""
    mine = list(victims)
    tcp, udp = (flows.outcome(kind, mine) for kind in ("tcp", "udp"))
    rest = [flows.outcome(kind, mine, others=True) for kind in ("tcp", "udp")]
    row = Row(
        failure,
        seconds(found_at - flows.failed_at),
        seconds(udp.action),
        f"{tcp.broken} of {tcp.flows} broken",
        f"{udp.moved} of {udp.flows} moved",
        f"{sum(o.moved for o in rest)} moved, {sum(o.broken for o in rest)} broken"
        f" of {sum(o.flows for o in rest)}",
        seconds(back),
    )
    return tuple(row)


def assert_others_untouched(flows: Flows, victims: Iterable[str]) -> None:
    """No flow of any other backend moved or broke."""
    mine = list(victims)
    for kind in ("tcp", "udp"):
        found = flows.outcome(kind, mine, others=True)
        assert found.is_untouched, (kind, found)
