# SPDX-License-Identifier: Apache-2.0
"""The life of a flow, as its entry of the connection table knows it.

An entry is made by the first packet that is no SYN. The client's FIN or RST makes it *ending*; it
is still followed, since acknowledgements come after, and a client that has closed its half may go
on receiving for hours. What speaks again after two ticks of silence is a flow of its own on the
same ports, and lives. A SYN on an entry that is ending, or silent for the VIP's `tcp_idle_timeout`,
or whose backend takes no new flows of its VIP, begins a new flow, which goes by the table.

A SYN alone never moves or ends the flow that is there: it leaves a mark with its sequence number,
and only a packet that continues from that number takes the entry's place. Who forges that needs to
know the ports, and to guess 16 bits of the number; a forged RST takes as much to end the flow.
"""

from typing import Final

from tidegate.model.ticks import Clock, passed
from tidegate.spec.lines import COPIED, ENDING, SPOKE, Entry, Lines, state_of
from tidegate.spec.packet import Packet
from tidegate.spec.state import BackendEntry, VipEntry

HANDSHAKE_BYTES: Final = 0xFFFF
"""The most that a client may send on a SYN-ACK: its window is not scaled (RFC 7323 section 2.2)."""
_SILENCE_TICKS: Final = 2


def follow(flows: Lines, key: int, vip: int, packet: Packet, tick: int) -> None:
    """Note in the flow's entry that a packet of it was forwarded."""
    place = flows.find(key)
    if place is None:
        return
    entry = flows.entries[place]
    flags = entry.flags & ~COPIED
    if packet.is_fin or packet.is_rst:
        flags |= ENDING
    elif not flags & ENDING:
        flags |= SPOKE
    elif passed(entry.tick, tick) >= _SILENCE_TICKS:
        flags = flags & ~ENDING | SPOKE
    flows.entries[place] = entry._replace(state=state_of(tick, vip, flags))


def keeps_backend(
    found: Entry, vip: VipEntry, backend: BackendEntry, pool: int, now: int, clock: Clock
) -> bool:
    """Return whether a SYN goes where the flow that is there goes: it lives, and may take new ones.

    Args:
        found: the entry of the flow.
        vip: of the flow.
        backend: of the entry; usable.
        pool: that new flows go to.
        now: jiffies.
        clock: what they are worth.
    """
    if found.flags & ENDING or backend.draining or backend.pool != pool:
        return False
    return not vip.tcp_idle or clock.age(found.tick, now) <= clock.limit(vip.tcp_idle)
