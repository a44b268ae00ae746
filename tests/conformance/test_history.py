# SPDX-License-Identifier: Apache-2.0
"""`tidegate history owner` against what the program does: who had a flow, from the journal."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from support.documents.roster import VIP4, backend, desired, vip
from support.packets.frames import ip4, tcp, udp
from support.packets.kernel import BUILD, Kernel
from tidegate.agent.journal import line_format, owner, replay
from tidegate.dataplane.publish import ledger
from tidegate.model.document_types import HashFields
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired, SourceRoute
from tidegate.planner import plan
from tidegate.planner.diff import difference

pytestmark = pytest.mark.root

CLIENTS = [(f"10.77.{i}.9", 40000 + 7 * i) for i in range(120)]
SETTINGS = BUILD.settings()


def wanted(*names: str, hash_fields: HashFields = "5-tuple", quarantined: str = "") -> Desired:
    route = SourceRoute(ip_network("10.77.64.0/18"), "canary")
    vips = [
        vip("web", VIP4, hash=hash_fields, tracking="transition", source_routes=(route,)),
        vip("dns", VIP4, 53, "udp"),
    ]
    servers = [backend(n, state="quarantine" if n == quarantined else "active") for n in names]
    return desired(vips, [*servers, backend("c1", "10.2.0.1", pool="canary")])


STEPS = [
    (wanted("b1", "b2", "b3"), 1000),
    (wanted("b1", "b2", "b3", "b4"), 1010),
    (wanted("b1", "b3", "b4"), 1020),
    (wanted("b1", "b3", "b4", quarantined="b3"), 1030),
    (wanted("b1", "b3", "b4"), 1400),
    (wanted("b1", "b3", "b4", hash_fields="source"), 1410),
]


def journal() -> tuple[list[line_format.Line], list[Generation]]:
    """Return the lines of all steps, and the generations."""
    made: list[line_format.Line] = [line_format.base_line(NOTHING, "")]
    found: list[Generation] = []
    previous = NOTHING
    for documents, now in STEPS:
        following = plan(documents, previous, now)
        origin = line_format.Origin(
            str(now),
            now,
            line_format.Cause("time"),
            line_format.summary(difference(previous, following)),
        )
        made.append(
            line_format.generation_line(
                following, ledger.following(following, previous, ledger.records(previous)), origin
            )
        )
        found.append(following)
        previous = following
    return [line_format.decode(line_format.encode(line).rstrip()) for line in made], found


@pytest.mark.parametrize("count", range(1, len(STEPS) + 1))
def test_it_names_whom_the_program_chose(count: int) -> None:
    """For new flows, and for flows from before a window, at each generation."""
    there, generations = journal()

    def history() -> Iterator[replay.Standing]:
        return replay.standings(there[: count + 1])

    with Kernel() as kernel:
        for generation in generations[:count]:
            kernel.install(generation)
        names = {
            p.backend.address.packed: key for key, p in generations[count - 1].backends.items()
        }
        transitions = 0
        for client, port in CLIENTS:
            flow = owner.Flow("tcp", ip_address(client), port, ip_address(VIP4), 80)
            found = owner.owner(history, SETTINGS, None, flow, STEPS[count - 1][1])
            assert found is not None
            assert found.is_certain
            old = names[kernel.run(tcp("A", ip4(client), sport=port))[1][30:34]]
            kernel.clear("flows")  # else the program goes on with what it has just tracked
            new = names[kernel.run(tcp("S", ip4(client), sport=port))[1][30:34]]
            assert (found.current, found.generation) == (new, generations[count - 1].number)
            assert (found.fallback or found.current) == old
            transitions += found.is_in_transition
            kernel.clear("syns")
            flow = owner.Flow("udp", ip_address(client), port, ip_address(VIP4), 53)
            found = owner.owner(history, SETTINGS, None, flow, STEPS[count - 1][1])
            assert found is not None
            assert found.current == names[kernel.run(udp(ip4(client), sport=port))[1][30:34]]
        assert (transitions > 0) == (count > 1)
