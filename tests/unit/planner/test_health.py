# SPDX-License-Identifier: Apache-2.0
"""What health checks make of a backend, on its way into a generation."""

from support.documents.roster import backend, web
from tidegate.dataplane.publish import ledger
from tidegate.model.generation import NOTHING
from tidegate.model.values import BackendKey, Fitness
from tidegate.planner import next_moment, plan

B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")
OUT = {B1: Fitness(is_out=True)}


def shares(generation: object) -> dict[str, int]:
    table = generation.pools["web"].table.current  # type: ignore[attr-defined]
    owners = {p.identity.id: k.name for k, p in generation.backends.items()}  # type: ignore[attr-defined]
    return {name: int((table == id_).sum()) for id_, name in owners.items()}


def test_an_unfit_backend_is_unreachable_and_out_of_the_table() -> None:
    """Its flag is set and its slots go to the others, all in one generation."""
    what = web(backend("b1"), backend("b2"))
    before = plan(what, NOTHING, 1000, {})
    after = plan(what, before, 1001, OUT)
    assert (after.backends[B1].weight, after.backends[B1].reachable) == (0, False)
    assert shares(after)["b1"] == 0
    assert after.backends[B1].identity == before.backends[B1].identity


def test_what_is_not_known_leaves_it_as_it_was() -> None:
    """An agent that starts, and has not read verdicts yet, does not bring a dead one back."""
    what = web(backend("b1"), backend("b2"))
    out = plan(what, plan(what, NOTHING, 1000, {}), 1001, OUT)
    read_back = ledger.contents(ledger.records(out))
    assert read_back.backends == out.backends
    assert plan(what, out, 1002, None).backends == out.backends
    assert plan(what, out, 1002, {}).backends[B1].reachable


def test_a_backend_joins_again_through_slow_start() -> None:
    """From the verdict's second on its weight rises in the pool's steps."""
    what = web(backend("b1"), backend("b2"), slow_start=60, slow_start_steps=4)
    out = plan(what, plan(what, NOTHING, 1000, {}), 1001, OUT)
    back = {B1: Fitness(is_out=False, joins_at=2000)}
    generation, weights = out, []
    now: int | None = 2000
    while now is not None and len(weights) < 10:
        generation = plan(what, generation, now, back)
        weights.append((now, generation.backends[B1].weight))
        windows = [w.closes_at for w in generation.pools["web"].table.windows[1:]]
        now = next_moment(generation)
        if now in windows:
            break
    assert weights == [(2000, 25), (2020, 50), (2040, 75), (2060, 100)]


def test_a_start_by_the_document_counts_if_it_is_later() -> None:
    """Neither a verdict nor a document makes a backend serve before the other allows it."""
    what = web(backend("b1", starts_at=3000), backend("b2"))
    back = {B1: Fitness(is_out=False, joins_at=2000)}
    early = plan(what, NOTHING, 2500, back)
    assert early.backends[B1].weight == 0
    assert plan(what, early, 3000, back).backends[B1].weight == 100


def test_health_does_not_revive_a_drained_or_disabled_backend() -> None:
    """A verdict can only take away."""
    what = web(backend("b1", state="drain"), backend("b2", state="disabled"))
    fit = {B1: Fitness(joins_at=1), B2: Fitness(joins_at=1)}
    generation = plan(what, NOTHING, 1000, fit)
    found = {k.name: (p.weight, p.reachable) for k, p in generation.backends.items()}
    assert found == {"b1": (0, True), "b2": (0, False)}
