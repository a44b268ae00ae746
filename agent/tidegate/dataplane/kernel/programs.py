# SPDX-License-Identifier: Apache-2.0
"""The programs: what they are built with, and how they are attached to an interface.

An XDP program that is attached through netlink stays when the process ends, which is what keeps
packets flowing while the agent is away. Replacing it is one atomic exchange in the driver.
"""

import errno
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tidegate.dataplane.kernel import jiffies, layout, maps, objects
from tidegate.dataplane.kernel import syscalls as bpf
from tidegate.dataplane.kernel.compiler import Program, compile_program
from tidegate.dataplane.kernel.loader import load
from tidegate.errors import CapabilityError, DataplaneError
from tidegate.model.constants import TABLE_SIZE, VIP_PLACES
from tidegate.model.features import ALL_FEATURES, Feature
from tidegate.spec import Settings, icmp_error
from tidegate.spec.limit import CELLS

XdpMode: TypeAlias = Literal["native", "generic"]
ModeChoice: TypeAlias = Literal["native", "generic", "auto"]

BALANCER: Final = "balancer"
"""Name of the program, in the kernel too."""

_HELD: Final = (
    ". What is attached there is held by a process (a bpf_link; `bpftool link` shows which) and "
    "goes only with it: end that process"
)

_FLAGS: Final[Mapping[XdpMode, int]] = {"native": 1 << 2, "generic": 1 << 1}
_ATTACHED: Final[Mapping[str, XdpMode]] = {"xdp": "native", "xdpgeneric": "generic"}


@dataclass(frozen=True)
class Build:
    """The build settings of a balancer.

    Attributes:
        hash_seed: key of the flow hash; equal on every host of a fleet, so that all choose alike.
        source4: network of outer IPv4 sources; the bits behind the prefix come from the flow hash.
        source6: the same for IPv6; at most the last 64 bits come from the hash.
        features: what the program can do; the rest is not compiled.
        capacity: sizes of the tables.
        error_rate: ICMP errors per second, VIP and CPU that are forwarded.
    """

    hash_seed: bytes
    source4: IPv4Network
    source6: IPv6Network
    features: frozenset[Feature] = ALL_FEATURES
    capacity: maps.Capacity = field(default_factory=maps.Capacity)
    error_rate: int = icmp_error.RATE

    def settings(self) -> Settings:
        """Return the same for the specification."""
        pairs = self.capacity.pairs
        return Settings(
            self.hash_keys(),
            self.source4,
            self.source6,
            jiffies.clock(),
            flow_pairs=pairs["flows"],
            syn_pairs=pairs["syns"],
            fragment_pairs=pairs["fragments"],
            mark_rate=self.capacity.mark_rate,
        )

    def hash_keys(self) -> tuple[int, int]:
        """Return the two 64-bit words of the hash key."""
        digest = hashlib.blake2b(self.hash_seed, digest_size=16, person=b"tidegate-flow").digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    def constants(self) -> tuple[tuple[str, str], ...]:
        """Return the macros that bpf/balancer.c expects."""
        key0, key1 = self.hash_keys()
        source6 = self.source6.network_address.packed
        mask6 = int(self.source6.hostmask)
        words = {f"SOURCE6_{i}": _network_order(source6[4 * i : 4 * i + 4]) for i in range(4)}
        return tuple(
            {
                "TABLE_SIZE": str(TABLE_SIZE),
                "TABLE_BYTES": str(layout.TABLE.itemsize),
                "FLOW_PAIRS": str(self.capacity.pairs["flows"]),
                "SYN_PAIRS": str(self.capacity.pairs["syns"]),
                "FRAGMENT_PAIRS": str(self.capacity.pairs["fragments"]),
                "MARK_RATE": str(self.capacity.mark_rate),
                "LIMIT_CELLS": str(CELLS),
                "ERROR_RATE": str(self.error_rate),
                "HZ": str(jiffies.clock().hz),
                "TICK_SHIFT": str(jiffies.clock().shift),
                "VIP_PLACES": str(VIP_PLACES),
                "HASH_KEY0": f"{key0:#x}ULL",
                "HASH_KEY1": f"{key1:#x}ULL",
                "SOURCE4": _network_order(self.source4.network_address.packed),
                "SOURCE4_MASK": f"{int(self.source4.hostmask):#x}U",
                **words,
                "SOURCE6_MASK2": f"{mask6 >> 32 & 0xFFFFFFFF:#x}U",
                "SOURCE6_MASK3": f"{mask6 & 0xFFFFFFFF:#x}U",
                **{f"WITH_{each.name}": str(int(each in self.features)) for each in Feature},
            }.items()
        )


def _network_order(word: bytes) -> str:
    """Return four bytes as the constant that a little-endian machine stores in that order."""
    return f"{int.from_bytes(word, 'little'):#x}U"


def compile_balancer(build: Build) -> Program:
    """Compile bpf/balancer.c and check that both sides lay out its maps alike.

    Raises:
        CompileError: with the compiler's messages.
        DataplaneError: the layouts differ.
    """
    program = compile_program(BALANCER, build.constants())
    layout.check(program)
    return program


def attach(fd: int, interface: str, mode: XdpMode) -> None:
    """Attach a loaded XDP program to an interface of this network namespace.

    A program that is there in the same mode is replaced atomically.

    Raises:
        DataplaneError: the interface does not exist, or its driver refused.
        CapabilityError: not allowed.
    """
    with IPRoute() as netlink:
        index = interface_index(interface)
        try:
            netlink.link(
                "set",
                index=index,
                IFLA_XDP={"attrs": [("IFLA_XDP_FD", fd), ("IFLA_XDP_FLAGS", _FLAGS[mode])]},
            )
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise CapabilityError(
                    f"may not attach XDP to {interface}: run as root, or with CAP_NET_ADMIN"
                ) from error
            raise DataplaneError(
                f"{interface} refused the XDP program in {mode} mode: {os.strerror(error.code)}"
                + (
                    ". If its driver has no XDP, allow generic mode: xdp_mode in the agent's file, "
                    "--mode of tidegate decap"
                    if mode == "native" and error.code != errno.EBUSY
                    else ""
                )
                + (_HELD if error.code == errno.EBUSY else "")
            ) from error


def detach(interface: str, mode: XdpMode) -> None:
    """Detach the XDP program from an interface; do nothing if there is none."""
    attach(-1, interface, mode)


def off_command(interface: str, mode: XdpMode) -> str:
    """Return the command that detaches a program; `xdp off` leaves a generic one attached."""
    return f"`ip link set dev {interface} {'xdp' if mode == 'native' else 'xdpgeneric'} off`"


def load_balancer(program: Program, fds: Mapping[str, int]) -> int:
    """Load a compiled balancer over these maps and return its descriptor.

    What belongs to one program alone is made here: an inner table to verify against, and the memory
    in which the steps of one packet hand on what they found. Maps that no packet reads are bound to
    it, so that all live for as long as it is attached, whatever becomes of their pins.

    Raises:
        CompileError: with the verifier's log.
        CapabilityError: not root, and a capability is missing.
    """
    scratch = program.leaves["scratches"]
    own = {
        "inner": maps.create_inner(),
        "scratches": bpf.map_create(
            bpf.PERCPU_ARRAY, "tg_scratch", scratch.key_size, scratch.size, 1
        ),
    }
    try:
        loaded = load(program, {**fds, **own})
        objects.bind(loaded, fds.values())
        return loaded
    finally:
        for fd in own.values():
            os.close(fd)


class Attachment(NamedTuple):
    """The XDP program that is on an interface."""

    mode: XdpMode
    program_id: int


def attachment(link: Any) -> Attachment | None:  # noqa: ANN401 - a netlink message
    """Return the XDP program in a netlink link message, or None."""
    xdp = link.get_attr("IFLA_XDP")
    mode = _ATTACHED.get(xdp.get_attr("IFLA_XDP_ATTACHED")) if xdp else None
    return Attachment(mode, xdp.get_attr("IFLA_XDP_PROG_ID")) if mode else None


def attached(interface: str) -> Attachment | None:
    """Return the XDP program that is on an interface, or None.

    Raises:
        DataplaneError: there is no such interface.
    """
    with IPRoute() as netlink:
        return attachment(netlink.link("get", index=interface_index(interface))[0])


def attached_anywhere() -> dict[str, Attachment]:
    """Return what is on each interface of this network namespace that has an XDP program."""
    with IPRoute() as netlink:
        found = {link.get_attr("IFLA_IFNAME"): attachment(link) for link in netlink.get_links()}
    return {name: there for name, there in found.items() if there is not None}


def interface_index(interface: str) -> int:
    """Return the index of an interface of the current network namespace.

    Raises:
        DataplaneError: there is none of this name.
    """
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise DataplaneError(f"there is no interface {interface!r}") from error


def attach_pass(interface: str) -> None:
    """Attach bpf/pass.c, so that a veth delivers what its peer sends by XDP_TX."""
    fd = load(compile_program("pass"), {})
    try:
        attach(fd, interface, "native")
    finally:
        os.close(fd)
