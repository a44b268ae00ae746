# SPDX-License-Identifier: Apache-2.0
"""A VIP whose pool has nobody left: its packets, from the specification and from the kernel."""

from dataclasses import replace

import pytest

from support.documents.roster import VIP4, VIP6, backend, desired, vip
from support.packets.both import Both
from support.packets.frames import ip4, tcp, udp
from tidegate.model.decision import Decision, Reason
from tidegate.model.values import Backend, Desired
from tidegate.spec import Verdict

pytestmark = pytest.mark.root

B1, B2, PAGE = backend("b1"), backend("b2"), backend("b9", pool="sorry")
SOURCES = range(40000, 40012)


def want(*backends: Backend) -> Desired:
    vips = [
        vip("web4", VIP4, sorry_pool="sorry"),
        vip("web6", VIP6, sorry_pool="sorry"),
        vip("dns4", VIP4, 53, "udp"),
    ]
    return desired(vips, [*backends, PAGE], delay=0)


UP = want(B1, B2)
DISABLED = want(replace(B1, state="disabled"), replace(B2, state="disabled"))
DRAINED = want(replace(B1, state="drain"), replace(B2, state="drain"))


def test_new_connections_reach_the_sorry_pool_then_the_pool(both: Both) -> None:
    """Every SYN to b9 while b1 and b2 are disabled; the VIP that has no such pool drops."""
    syns = [tcp("S", sport=s) for s in SOURCES]
    both.want(UP)
    assert set(both.backends(syns)) == {"b1", "b2"}
    both.want(DISABLED)
    assert set(both.backends(syns)) == {"b9"}
    assert both.send(udp()).reason == Reason.NO_BACKEND
    both.want(UP)
    assert set(both.backends(syns)) == {"b1", "b2"}


def test_flows_of_failed_backends_go_to_the_sorry_pool(both: Both) -> None:
    """Their backend is not usable, so the next packet follows the table, and is tracked there."""
    both.want(UP)
    both.backends(tcp("A", sport=s) for s in SOURCES)
    both.want(DISABLED)
    assert set(both.backends(tcp("A", sport=s) for s in SOURCES)) == {"b9"}


def test_established_flows_of_drained_backends_stay(both: Both) -> None:
    """A drained pool takes nobody new, and what is tracked keeps its backend."""
    both.want(UP)
    first = both.backends(tcp("A", sport=s) for s in SOURCES)
    both.want(DRAINED)
    assert both.backends(tcp("A", sport=s) for s in SOURCES) == first
    assert set(both.backends(tcp("S", sport=s + 100) for s in SOURCES)) == {"b9"}


def test_flows_of_the_sorry_pool_end_there(both: Both) -> None:
    """Back on its pool, a VIP's tracked flows stay with b9: another backend would reset them."""
    both.want(DISABLED)
    both.backends(tcp("A", sport=s) for s in SOURCES)
    both.want(UP)
    results = [both.send(tcp("A", sport=s)) for s in SOURCES]
    assert {(both.backend(r), r.decision) for r in results} == {("b9", Decision.TRACKED)}
    assert set(both.backends(tcp("S", sport=s + 100) for s in SOURCES)) == {"b1", "b2"}


def test_without_anybody_at_all_packets_are_dropped(both: Both) -> None:
    """A sorry pool that is empty too is no last resort."""
    nobody = desired([vip("web4", VIP4, sorry_pool="sorry")], [])
    both.want(nobody)
    result = both.send(tcp("S", ip4()))
    assert (result.verdict, result.reason) == (Verdict.DROP, Reason.NO_BACKEND)
