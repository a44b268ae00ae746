# SPDX-License-Identifier: Apache-2.0
"""A rollout's state machine while others write too: nobody's edit is lost, and the end is whole."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from support.fleet.world import HOSTS, REFUSAL, World, failing, moved, world
from tidegate.model.rollout import MovedHost
from tidegate.rollout import orders
from tidegate.rollout.writes import edit_put_back, moved_value, pointing


def test_an_edit_of_a_moved_host_pauses_and_is_kept() -> None:
    """The rollout stops and says so; after `resume` the edit is there, and survives the end."""
    made = world()
    made.run(lambda r: r.state == "baking")
    made.put("hosts/lb1", '{"track": "rollout-new", "reason": "mine"}')
    paused = made.run()
    assert paused.paused
    assert "hosts/lb1 was changed by somebody else" in paused.reason
    made.make(orders.resume(made.rollout, made.seen(), "another", made.now))
    assert made.run().state == "done"
    assert json.loads(made.value("hosts/lb1") or "") == {"track": "canary", "reason": "mine"}


def test_what_a_rollout_writes_carries_its_own_trace_alone() -> None:
    """A trace context that was there before is of another write; documents are given back as is."""
    other = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    own = "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b8-01"
    before = json.dumps({"freeze": False, "track": "canary", "traceparent": other}).encode()
    host = MovedHost(host="lb1", wave=0, track="canary", original=before.decode())
    for context in (None, own):
        document = replace(world().rollout, traceparent=context)
        carried = {"traceparent": context} if context else {}
        assert json.loads(moved_value(document, host) or b"") == {
            "freeze": False,
            "track": document.track,
            **carried,
        }
        pointer = pointing(b'{"release": "old", "traceparent": "%s"}' % other.encode(), document)
        assert json.loads(pointer) == {"release": document.release, **carried}
    assert json.loads(edit_put_back(host, before) or b"") == {"freeze": False, "track": "canary"}


def test_an_edit_survives_an_abort_too() -> None:
    """Only the track of an edited document is put back."""
    made = world()
    made.run(lambda r: r.wave == 1 and r.state == "baking")
    made.put("hosts/lb2", '{"track": "rollout-new", "reason": "mine"}')
    made.put("hosts/lb1", '{"track": "stable"}')
    made.make(orders.abort(made.rollout, "test", "ann", made.now))
    assert made.run().state == "aborted"
    assert json.loads(made.value("hosts/lb2") or "") == {"reason": "mine"}
    assert made.value("hosts/lb1") == '{"track": "stable"}'
    assert set(made.releases().values()) == {"old"}


def test_a_host_that_was_taken_away_is_left_alone() -> None:
    """After `resume` it is on the track where the operator put it, and no later wave takes it."""
    made = world()
    made.run(lambda r: r.state == "baking")
    made.put("tracks/lab", '{"release": "old"}')
    made.put("hosts/lb1", '{"track": "lab"}')
    assert made.run().paused
    made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert "none of its hosts can be moved now" in made.run().reason  # it was the only one
    made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert made.run().state == "done"
    assert made.value("hosts/lb1") == '{"track": "lab"}'
    assert made.releases()["lb1"] == "old"
    assert made.rollout.left_out == ("lb1",)


def test_a_pointer_that_somebody_flips_pauses() -> None:
    """A hotfix on stable is not run over; `resume` means that it is to be."""
    made = world()
    made.run(lambda r: r.wave == 2)
    made.put("tracks/stable", '{"release": "hotfix"}')
    assert "tracks/stable was changed by somebody else" in made.run().reason
    made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert made.run().state == "done"
    assert json.loads(made.value("tracks/stable") or "") == {"release": "new"}


def test_a_freeze_of_a_moved_host_pauses() -> None:
    """What is frozen cannot follow; an operator decides."""
    made = world()
    made.answers["lb1"] = failing(state="frozen", reason="rolled back by hand")
    paused = made.run()
    assert paused.paused
    assert "lb1 is frozen: rolled back by hand" in paused.reason


def test_frozen_and_absent_hosts_are_left_out_and_follow_at_last() -> None:
    """They are not waited for; the pointer takes them along when they are back."""
    made = World(dict(HOSTS))
    made.put("hosts/lb6", '{"freeze": true}')
    made.answers["lb5"] = lambda _release: None
    made.settle()
    made.start()
    assert any("left out" in line and "lb5, lb6" in line for line in made.lines)
    assert made.run().state == "done"
    assert set(moved(made)) == {"lb1", "lb2", "lb3", "lb4"}
    made.answers.clear()
    assert made.releases()["lb5"] == "new"


def test_a_host_that_appears_meanwhile_gets_its_turn() -> None:
    """It is moved and baked before the pointers flip."""
    made = world()
    made.run(lambda r: r.state == "flipping")
    made.names.append("lb7")
    assert made.run().state == "done"
    assert moved(made)[-1] == "lb7"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(("nack", "edit", "take", "delete", "restart", "pause", "abort")),
            st.sampled_from(sorted(HOSTS)),
        ),
        max_size=4,
    )
)
def test_whatever_happens_the_end_is_whole(events: list[tuple[int, str, str]]) -> None:
    """Every host is on a track that exists, pointers are all old or all new, nothing is lost."""
    made = world(waves="canary,3,100%", bake=3)
    touched: set[str] = set()
    for wait, what, host in events:
        for _ in range(wait):
            made.tick()
        happen(made, what, host, touched)
    for _ in range(20):
        made.run()  # each tick checks that no host is on a track without a key
        if made.rollout.state in ("done", "failed", "aborted"):
            break
        made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
    assert made.rollout.state in ("done", "failed", "aborted")
    pointers = {
        json.loads(made.value(f"tracks/{t}") or "")["release"] for t in ("stable", "canary")
    }
    moved_tracks = {each.track for each in made.rollout.moved}
    if moved_tracks == {"stable", "canary"} or made.rollout.state != "done":
        assert pointers == {"new" if made.rollout.state == "done" else "old"}
    assert made.value("tracks/rollout-new") is None
    for name, value in HOSTS.items():
        if name not in touched:
            assert made.value(f"hosts/{name}") == value


def happen(made: World, what: str, host: str, touched: set[str]) -> None:
    """Apply an event from outside; a host whose key others wrote becomes `touched`."""
    current = made.value(f"hosts/{host}")
    over = made.rollout.state in ("done", "failed", "aborted")
    match what:
        case "nack":
            made.answers[host] = failing(state="degraded", refusals=[REFUSAL])
        case "edit":
            touched.add(host)
            made.put(f"hosts/{host}", json.dumps({**json.loads(current or "{}"), "reason": "mine"}))
        case "take":
            touched.add(host)
            made.put(f"hosts/{host}", '{"track": "stable"}')
        case "delete":
            touched.add(host)
            made.put(f"hosts/{host}", None)
        case "restart" if not over:
            made.make(orders.resume(made.rollout, made.seen(), "test", made.now))
        case "pause" if not over:
            made.make(orders.pause(made.rollout, "stop", made.now))
        case "abort" if not over and made.rollout.state != "restoring":
            made.make(orders.abort(made.rollout, "test", "ann", made.now))
