# SPDX-License-Identifier: Apache-2.0
"""A VIP leaves a pool that has nobody left: no packet is dropped at any step of publishing."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.crash.bench import Bench, Packets
from support.documents.roster import backend, desired, vip
from tidegate.dataplane.publish.publisher import Publisher
from tidegate.dataplane.publish.steps import Step
from tidegate.errors import DataplaneError
from tidegate.model.document_types import BackendState
from tidegate.model.generation import Generation
from tidegate.model.values import Backend, Desired
from tidegate.planner import plan

pytestmark = pytest.mark.root

NOW = 1_700_000_000
B1, B2, PAGE = backend("b1"), backend("b2"), backend("b9", pool="sorry")
SHOP = vip("shop", "192.0.2.1", sorry_pool="sorry")
PLAIN = vip("plain", "192.0.2.2")


def want(*backends: Backend) -> Desired:
    return desired([SHOP, PLAIN], [*backends, PAGE], delay=0)


def in_state(state: BackendState) -> Desired:
    return want(replace(B1, state=state), replace(B2, state=state))


UP = want(B1, B2)
EMPTIED = {
    "disabled": in_state("disabled"),
    "quarantined": in_state("quarantine"),
    "drained": in_state("drain"),
    "without weight": want(replace(B1, weight=0), replace(B2, weight=0)),
    "deleted": want(),
    "moved to another pool": replace(
        in_state("disabled"),
        vips={"shop": vip("shop", "192.0.2.1", pool="sorry"), "plain": PLAIN},
    ),
    "renamed as well": replace(in_state("disabled"), vips={"x": replace(SHOP, name="x")}),
}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    built = Bench()
    yield built
    built.close()


def publish(bench: Bench, publisher: Publisher, after: Generation) -> dict[Step, set[str | None]]:
    """Publish, and return where new flows of the VIP went at each step."""
    packets = Packets(bench.program, publisher.in_force, after)
    seen: dict[Step, set[str | None]] = {}

    def look(step: Step) -> None:
        seen.setdefault(step, set()).update(packets.table(SHOP))

    publisher.reached = look
    publisher.publish(after, 0.0)
    return seen


@pytest.mark.parametrize("emptied", EMPTIED.values(), ids=EMPTIED)
def test_no_packet_is_dropped_there_and_back(bench: Bench, emptied: Desired) -> None:
    """Each goes to a server of the pool, or to the page; at the end to the page alone."""
    old = plan(UP, bench.publisher().in_force, NOW)
    publisher = bench.start(old)
    after = plan(emptied, old, NOW + 1)
    seen = publish(bench, publisher, after)
    assert set().union(*seen.values()) == {"b1", "b2", "b9"}
    assert seen[Step.NUMBER_RECORDED] == {"b9"}
    back = publish(bench, publisher, plan(UP, after, NOW + 2))
    assert set().union(*back.values()) == {"b1", "b2", "b9"}
    assert back[Step.NUMBER_RECORDED] == {"b1", "b2"}
    publisher.close()


def test_a_vip_that_stays_is_taken_off_its_backends_at_last(bench: Bench) -> None:
    """One without a sorry pool drops what it gets, and nobody disabled is reached."""
    old = plan(UP, bench.publisher().in_force, NOW)
    publisher = bench.start(old)
    after = plan(EMPTIED["disabled"], old, NOW + 1)
    publish(bench, publisher, after)
    assert set(Packets(bench.program, old, after).table(PLAIN)) == {None}
    assert publisher.audit(deep=True) == []
    publisher.close()


@pytest.mark.parametrize("step", [Step.VIPS_SELECTED, Step.EMPTIED_TAKEN_OUT, Step.EMPTIED_SWAPPED])
def test_a_refusal_on_the_way_leaves_no_table_behind(bench: Bench, step: Step) -> None:
    """What came into force is found, and the next attempt ends in the same state."""
    old = plan(UP, bench.publisher().in_force, NOW)
    publisher = bench.start(old)
    pins = bench.pins / "tables"
    before = len(list(pins.iterdir()))

    def refuse(reached: Step) -> None:
        if reached is step:
            raise OSError(12, "Cannot allocate memory")

    publisher.reached = refuse
    with pytest.raises(DataplaneError):
        publisher.publish(plan(EMPTIED["disabled"], old, NOW + 1), 0.0)
    publisher.reached = lambda _: None
    after = plan(EMPTIED["disabled"], publisher.in_force, NOW + 2)
    assert set(Packets(bench.program, old, after).table(SHOP)) <= {"b1", "b2", "b9"}
    publisher.publish(after, 0.0)
    assert set(Packets(bench.program, old, after).table(SHOP)) == {"b9"}
    publisher.reap(1.0)
    assert len(list(pins.iterdir())) == before
    publisher.close()
