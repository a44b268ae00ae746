# SPDX-License-Identifier: Apache-2.0
"""Two namespaces with a veth between them: a host with `lb0`, and a neighbour with `up0`."""

import secrets
import subprocess
from ipaddress import ip_address
from typing import Self

from tidegate.dataplane import links
from tidegate.dataplane.links import Gateways, Link
from tidegate.dataplane.network.merging import Stack
from tidegate.dataplane.network.next_hops import Backends
from tidegate.lab import netns


class Wire:
    """A host, and a neighbour that answers for fe80::1, 10.0.0.1 and 10.0.0.9."""

    def __init__(self) -> None:
        self.host = f"tgtest-{secrets.token_hex(4)}-a"
        self.neighbour = self.host.removesuffix("a") + "b"

    def __enter__(self) -> Self:
        for name in (self.host, self.neighbour):
            netns.create(name)
            with netns.entered(name):
                netns.sysctl({"ipv6/conf/default/accept_dad": "0"})  # usable at once
        peer = f"peer name up0 netns {self.neighbour}"
        self.at_host(f"link add lb0 address 02:00:00:00:00:0a type veth {peer}")
        self.at_neighbour("link set up0 address 02:00:00:00:00:0b up")
        for address in ("10.0.0.1/24", "10.0.0.9/24", "fe80::1/64", "fe80::9/64"):
            self.at_neighbour(f"addr add {address} dev up0 {_nodad(address)}")
        self.at_host("link set lb0 up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.host, self.neighbour):
            netns.remove(name)

    def at_host(self, *commands: str) -> None:
        """Run `ip` on the host with these words."""
        _ip(self.host, commands)

    def at_neighbour(self, *commands: str) -> None:
        """Run `ip` on the neighbour."""
        _ip(self.neighbour, commands)

    def address(self, *addresses: str) -> None:
        """Give the host addresses."""
        self.at_host(*(f"addr add {each} dev lb0 {_nodad(each)}" for each in addresses))

    def read(
        self, *backends: str, device: str = "lb0", gateways: Gateways | None = None
    ) -> tuple[Link, Stack]:
        """Read an interface for backends b1, b2, … with these addresses."""
        addresses = [ip_address(each) for each in backends]
        names = {each: f"web/b{n}" for n, each in enumerate(addresses, 1)}
        asked = Backends(names, frozenset(each.version for each in addresses))
        with netns.entered(self.host):
            return links.read(device, gateways or Gateways(), asked)

    def link(self, *backends: str, **settings: object) -> Link:
        """Read an interface twice, so that its next hops are resolved."""
        self.read(*backends, **settings)  # type: ignore[arg-type]
        for _ in range(100):
            link, _ = self.read(*backends, **settings)  # type: ignore[arg-type]
            if link.missing({ip_address(each).version for each in backends}) is None:
                break
            subprocess.run(["sleep", "0.02"], check=True)
        return link

    def sysctl(self, path: str, value: str) -> None:
        """Write a setting of the host below /proc/sys/net."""
        with netns.entered(self.host):
            netns.sysctl({path: value})


def _nodad(address: str) -> str:
    return "nodad" if ":" in address else ""


def _ip(namespace: str, commands: tuple[str, ...]) -> None:
    for command in commands:
        words = ["ip", "-n", namespace, *command.split()]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
