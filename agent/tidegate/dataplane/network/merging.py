# SPDX-License-Identifier: Apache-2.0
"""Frames that the host has merged from several packets before the program sees them.

A frame that is longer than any packet of its connection would be answered "too big", and the
client, whose packets were not, cannot do better: an upload all but stops. Who merges, and when the
program sees it:

* LRO and rx-gro-hw: the NIC. Drivers refuse native XDP with them, or turn them off; what runs in
  generic mode sees their frames. They are turned off here on the devices that have the program.
* GRO: the kernel, above the driver. A device with a program in generic mode is spared
  (netif_elide_gro), but not what it stands on: a bridge's or a bond's ports, a VLAN's device. It
  comes after a program in native mode. Who turns it off there slows all else that the device
  carries, so that is left to the host's owner, and generic mode is refused meanwhile.
* TSO of a veth's peer: its frames come as one. With a program in native mode the kernel has the
  peer cut them, in generic mode not. It is turned off here; but a peer in another network
  namespace cannot be looked at.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool

from tidegate.dataplane.network.devices import Device, below

_BY_NIC: Final[Mapping[str, str]] = {"rx-lro": "lro", "rx-gro-hw": "rx-gro-hw"}
_BY_KERNEL: Final[Mapping[str, str]] = {"rx-gro": "gro"}
_BY_PEER: Final[Mapping[str, str]] = {
    "tx-tcp-segmentation": "tx-tcp-segmentation",
    "tx-tcp6-segmentation": "tx-tcp6-segmentation",
    "tx-udp-segmentation": "tx-udp-segmentation",
}


class Merger(NamedTuple):
    """A device that merges what the program then sees as one frame.

    Attributes:
        features: that are on, in ethtool's words.
        fixed: those of them that the driver does not let anyone turn off.
    """

    device: str
    features: tuple[str, ...]
    fixed: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        """What to do about it."""
        loose = [each for each in self.features if each not in self.fixed]
        parts = []
        if loose:
            command = " ".join(f"{each} off" for each in loose)
            parts.append(f"run `ethtool -K {self.device} {command}`")
        if self.fixed:
            parts.append(
                f"{', '.join(self.fixed)} of {self.device} is fixed: have whoever provides the "
                "device (a hypervisor) turn it off"
            )
        return " and ".join(parts)


class Stack(NamedTuple):
    """A device that has, or is to have, the program, and what is around it.

    Attributes:
        runs_on: devices in whose driver the program runs in native mode: itself, a bond's ports.
        others: all devices, where any of them matters.
    """

    device: Device
    runs_on: tuple[Device, ...]
    others: Sequence[Device] = ()


def turn_off(stack: Stack, mode: str) -> list[Merger]:
    """Turn off what is ours to turn off, as far as drivers let us; return what was turned off."""
    done = []
    for device, which in _ours(stack, mode):
        before = _merger(device, which)
        loose = [] if before is None else [f for f in before.features if f not in before.fixed]
        if not loose:
            continue
        with suppress(OSError, EthtoolError):
            _set_off(device.name, [key for key, word in which.items() if word in loose])
        after = _merger(device, which)
        off = tuple(f for f in loose if after is None or f not in after.features)
        if off:
            done.append(Merger(device.name, off))
    return done


def _ours(stack: Stack, mode: str) -> list[tuple[Device, Mapping[str, str]]]:
    """Return devices that have the program, and a veth's peer: it sends to that veth alone."""
    if mode == "native":
        return [(each, _BY_NIC) for each in stack.runs_on]
    peers = [(each, _BY_PEER) for each in _peers([stack.device], stack.others)]
    return [(stack.device, _BY_NIC), *peers]


def _peers(through: Iterable[Device], others: Iterable[Device]) -> list[Device]:
    """Return the peers of veths, as far as they are in this network namespace."""
    by_index = {each.index: each for each in others}
    ends = [by_index.get(each.lower) for each in through if each.kind == "veth"]
    return [each for each in ends if each is not None]


def mergers(stack: Stack, mode: str) -> list[Merger]:
    """Return who merges frames before the program sees them in a mode."""
    if mode == "native":
        found = [_merger(each, _BY_NIC) for each in stack.runs_on]
        return [each for each in found if each is not None]
    lower = below(stack.device, stack.others)
    asked = [
        _merger(stack.device, _BY_NIC),
        *(_merger(d, {**_BY_NIC, **_BY_KERNEL}) for d in lower),
    ]
    asked += [_merger(peer, _BY_PEER) for peer in _peers((stack.device, *lower), stack.others)]
    return [each for each in asked if each is not None]


def hidden_peers(stack: Stack, mode: str) -> list[str]:
    """Return the veths through which merged frames may come from where nobody here can look."""
    if mode == "native":
        return []
    through = (stack.device, *below(stack.device, stack.others))
    return [each.name for each in through if each.kind == "veth" and not each.lower]


def sentence(stack: Stack, mode: str) -> str:
    """Return what of a device's frames may be merged in its mode, and what to do, or nothing."""
    name, found = stack.device.name, mergers(stack, mode)
    if found:
        what = "; ".join(f"{', '.join(each.features)} of {each.device}" for each in found)
        todo = "; ".join(each.remedy for each in found)
        return f"{name}: the host merges packets before the program sees them ({what}): {todo}"
    hidden = hidden_peers(stack, mode)
    if hidden:
        return (
            f"{name}: in generic mode the program gets what the peer of {', '.join(hidden)} sends "
            "as it is, merged frames too, and the peer is in another network namespace: use "
            '`xdp_mode = "native"`, or see there that `ethtool -k` shows '
            "tcp-segmentation-offload: off"
        )
    return ""


def refusal(name: str, found: Sequence[Merger]) -> str:
    """Return why an interface cannot have the program in generic mode, and what to do."""
    what = "; ".join(f"{', '.join(each.features)} of {each.device}" for each in found)
    todo = "; ".join(each.remedy for each in found)
    return (
        f"{name} takes the program in generic mode only, where it would get frames that the host "
        f"has merged from several packets ({what}), and answer them as too big: {todo}"
    )


def _merger(device: Device, which: Mapping[str, str]) -> Merger | None:
    """Return which of these features are on; a device that cannot say has none."""
    ethtool = IoctlEthtool(device.name)
    try:
        may_change = {name: may for name, is_on, may, *_ in ethtool.get_features() if is_on}
    except (OSError, EthtoolError):
        return None
    finally:
        ethtool.close()
    found = [key for key in which if key in may_change]
    fixed = tuple(which[key] for key in found if not may_change[key])
    return Merger(device.name, tuple(which[key] for key in found), fixed) if found else None


def _set_off(name: str, keys: Sequence[str]) -> None:
    ethtool = IoctlEthtool(name)
    try:
        features = ethtool.get_features()
        for key in keys:
            features[key] = False
        ethtool.set_features(features)
    finally:
        ethtool.close()
