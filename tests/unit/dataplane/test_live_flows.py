# SPDX-License-Identifier: Apache-2.0
"""Which entries are live flows, and what a change does to them; without a kernel."""

from dataclasses import replace

import numpy as np
import pytest

from support.documents.roster import backend, desired, vip
from support.packets.lines import entry, table
from tidegate.dataplane.inspect.flow_impact import FlowImpact, flow_impact
from tidegate.dataplane.inspect.live_flows import Rules, read
from tidegate.dataplane.kernel.lines import Lines
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.ticks import TICKS, Clock
from tidegate.model.values import Desired
from tidegate.planner import plan
from tidegate.spec.lines import CONTESTED, COPIED, ENDING, SPOKE

CLOCK = Clock(250)
WANTED = desired(
    [
        vip("web", "192.0.2.1"),
        vip("dns", "192.0.2.1", 53, "udp", udp_idle_timeout=30),
        vip("ever", "192.0.2.2", 53, "udp", udp_idle_timeout=0),
        vip("none", "192.0.2.3", tracking="none"),
    ],
    [backend("b1"), backend("b2"), backend("b3", "10.0.0.3", state="quarantine")],
)
NOW = plan(WANTED, NOTHING, 1000)
WEB, DNS, EVER, UNTRACKED = (NOW.vips[name].identity.id for name in ("web", "dns", "ever", "none"))
B1, B2, B3 = (placed.identity.id for _, placed in sorted(NOW.backends.items()))
UDP, TCP = CLOCK.limit(30), CLOCK.limit(4500)
TICK = 10 * TCP


def live(lines: Lines, tick: int = TICK, generation: Generation = NOW) -> list[int]:
    """Return the fingerprints of the live flows."""
    rules = Rules.of(generation, CLOCK)
    found = [part.where(rules.live(part)).owner >> np.uint64(24) for part in read(lines, tick)]
    return sorted(np.concatenate(found).tolist())


def impact(lines: Lines, wanted: Desired, now: int = 2000) -> FlowImpact:
    """Return what a change of documents does."""
    return flow_impact(read(lines, TICK), NOW, plan(wanted, NOW, now), CLOCK)


@pytest.mark.parametrize(
    ("vip_id", "silence", "is_live"),
    [
        (DNS, UDP, True),
        (DNS, UDP + 1, False),
        (WEB, TCP, True),
        (WEB, TCP + 1, False),
        (EVER, TICKS - 9, True),
        (UNTRACKED, 0, False),
        (99, 0, False),
    ],
)
def test_silence_is_that_of_the_vip(vip_id: int, silence: int, is_live: bool) -> None:
    """UDP and TCP have timeouts of their own, 0 is never, and who does not track has no flows."""
    lines = table(entry(1, vip_id, B1, tick=(TICK - silence) % TICKS))
    assert live(lines) == [1] * is_live


def test_ticks_go_round() -> None:
    """Silence is counted over the end of the ticks, and what spoke since we began is young."""
    lines = table(entry(1, DNS, B1, tick=TICKS - 1), entry(2, DNS, B1, tick=3))
    assert live(lines, tick=2) == [1, 2]
    assert live(lines, tick=UDP + 1) == [2]


def test_who_has_ended_or_cannot_be_reached_is_no_flow() -> None:
    """ENDING counts; other flags do not; a quarantined or another backend of the id has none."""
    lines = table(
        entry(1, WEB, B1, tick=TICK, flags=SPOKE | CONTESTED),
        entry(2, WEB, B1, tick=TICK, flags=SPOKE | ENDING),
        entry(3, WEB, B3, tick=TICK),
        entry(4, WEB, B1, tick=TICK, incarnation=2),
        entry(5, WEB, 999, tick=TICK),
        entry(6, WEB, B2, tick=TICK),
    )
    assert live(lines) == [1, 6]


def test_copies_are_one_flow() -> None:
    """However many; and none where the flow has spoken since, whatever lies between them."""
    lines = table(
        *(entry(1, WEB, B1, tick=TICK, flags=COPIED) for _ in range(4)),
        entry(2, WEB, B2, tick=TICK, flags=COPIED),
        entry(2, WEB, B2, tick=TICK, flags=SPOKE),
        entry(3, WEB, B2, tick=TICK, flags=COPIED | ENDING),
        *(entry(4, WEB, B2, tick=TICK) for _ in range(2)),
        size=1 << 16,
    )
    assert live(lines) == [1, 2, 4, 4]


def test_a_vip_that_moves_loses_its_flows() -> None:
    """Its id stays, and an entry has but the id; still its flows are those of another use."""
    lines = table(*(entry(n, WEB, B1, tick=TICK) for n in range(1, 6)))
    web = replace(WANTED.vips["web"], port=81)
    found = impact(lines, replace(WANTED, vips=WANTED.vips | {"web": web}))
    assert (found.tracked, found.lost_vip, found.lost) == (5, {"web": 5}, 5)


def test_stale_is_what_is_no_live_flow() -> None:
    """Ended, idle and orphaned entries are neither lost nor kept."""
    lines = table(
        entry(1, WEB, B1, tick=TICK),
        entry(2, WEB, B1, tick=TICK, flags=ENDING),
        entry(3, DNS, B1, tick=TICK - UDP - 1),
        entry(4, WEB, B3, tick=TICK),
    )
    servers = {key: each for key, each in WANTED.backends.items() if key.name != "b1"}
    found = impact(lines, replace(WANTED, backends=servers))
    assert (found.tracked, found.stale) == (1, 3)
    assert (found.lost_backend, found.leaving) == ({}, {"web/b1": 1})
