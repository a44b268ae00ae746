# SPDX-License-Identifier: Apache-2.0
"""What is taken back when etcd goes away after a change, and for how long the host holds then."""

from dataclasses import dataclass, field

from support.documents.roster import backend, desired, vip
from tidegate.agent.dead_man import LOOK, PATIENCE, RETURN, Contact, DeadMan
from tidegate.agent.outcome import Applied
from tidegate.agent.rollback_states import RollbackStates
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import Desired, Snapshot
from tidegate.planner import plan
from tidegate.planner.diff import difference

CONFIRM = 10.0
ONE = desired([vip("a", "192.0.2.1")], [backend("b1")])
TWO = desired([vip("a", "192.0.2.1"), vip("b", "10.0.0.0/8")], [backend("b1")], revision=2)
THREE = desired([vip("a", "192.0.2.1"), vip("c", "11.0.0.0/8")], [backend("b1")], revision=3)
MORE_BACKENDS = desired([vip("a", "192.0.2.1")], [backend("b1"), backend("b2")], revision=2)


@dataclass
class Host:
    """A host with a dead man's switch, whose etcd answers until it is lost."""

    confirm: float = CONFIRM
    now: float = 1000.0
    last: float = 1000.0
    is_lost: bool = False
    is_held: bool = False
    revision: int = 0
    in_force: Generation = NOTHING
    states: RollbackStates = field(default_factory=lambda: RollbackStates(5))

    def __post_init__(self) -> None:
        self.dead_man = DeadMan(self.confirm, NOTHING, self.states, lambda: self.now)

    def apply(self, wanted: Desired, *, is_order: bool = False) -> None:
        """Bring documents into force."""
        before, self.in_force = self.in_force, plan(wanted, self.in_force, int(self.now))
        self.states.remember(self.in_force.number, self.in_force.digest, wanted)
        self.revision = self.revision if is_order else wanted.revision
        snapshot = None if is_order else Snapshot(wanted.revision, {})
        self.dead_man.note(
            Applied(
                previous=before,
                generation=self.in_force,
                diff=difference(before, self.in_force),
                desired=wanted,
                now=int(self.now),
                stepped=0,
                snapshot=snapshot,
                refused=frozenset(),
            )
        )

    def contact(self) -> Contact:
        """Return how etcd is reached now."""
        return Contact(self.is_lost, self.last, self.revision)

    def wait(self, seconds: float) -> Desired | None:
        """Let time pass; carry out what the switch says, and return what it went back to."""
        found = None
        for _ in range(int(seconds / LOOK)):
            self.now += LOOK
            self.last = self.last if self.is_lost else self.now
            target = self.dead_man.judge(self.contact())
            if target is not None:
                found = target.desired
                self.apply(found, is_order=True)
                self.dead_man.took_back(self.contact())
                self.is_held = True
            if self.dead_man.ends_hold(self.contact(), is_held=self.is_held):
                self.is_held = False
        return found


def serving() -> Host:
    """Return a host on which one VIP is confirmed."""
    host = Host()
    host.apply(ONE)
    host.wait(CONFIRM + 1)
    return host


def taken_back() -> Host:
    """Return a host that has taken back a VIP, and has etcd again."""
    host = serving()
    host.apply(TWO)
    host.is_lost = True
    assert host.wait(PATIENCE + 1) == ONE
    host.is_lost = False
    return host


def test_vips_that_cost_etcd_are_taken_back() -> None:
    """Also when etcd went away some seconds later; not before it was away for a while."""
    host = serving()
    host.apply(TWO)
    host.wait(CONFIRM - 2)
    host.is_lost = True
    assert host.wait(PATIENCE - 1) is None
    assert host.wait(2) == ONE


def test_vips_that_etcd_outlives_stay() -> None:
    """However long it is away afterwards."""
    host = serving()
    host.apply(TWO)
    host.wait(CONFIRM)
    host.is_lost = True
    assert host.wait(600) is None
    assert host.dead_man.next_due() is None


def test_a_short_outage_takes_nothing_back() -> None:
    """A member that restarts, or an election."""
    host = serving()
    host.apply(TWO)
    host.is_lost = True
    host.wait(PATIENCE - 1)
    host.is_lost = False
    host.wait(CONFIRM)
    host.is_lost = True
    assert host.wait(60) is None


def test_several_changes_go_back_to_the_confirmed_one() -> None:
    """Any of them may be to blame."""
    host = serving()
    host.apply(TWO)
    host.wait(3)
    host.apply(THREE)
    host.is_lost = True
    assert host.wait(PATIENCE + 1) == ONE


def test_a_change_of_backends_is_never_taken_back() -> None:
    """An outage of etcd must not bring back what was drained or quarantined."""
    host = serving()
    host.apply(MORE_BACKENDS)
    host.is_lost = True
    assert host.wait(60) is None


def test_a_host_that_begins_to_serve_goes_on() -> None:
    """There is no way back to nothing."""
    host = Host()
    host.apply(ONE)
    host.is_lost = True
    assert host.wait(60) is None


def test_it_can_be_turned_off() -> None:
    """Zero seconds confirm everything at once."""
    host = Host(confirm=0)
    host.apply(ONE)
    host.apply(TWO)
    host.is_lost = True
    assert host.wait(60) is None


def test_a_hold_ends_when_etcd_is_back_for_a_while() -> None:
    """An outage in between begins the time anew."""
    host = taken_back()
    host.wait(RETURN - 5)
    host.is_lost = True
    host.wait(2)
    host.is_lost = False
    host.wait(RETURN - 1)
    assert host.is_held
    host.wait(3)
    assert not host.is_held


def test_a_second_hold_waits_for_other_documents() -> None:
    """What was taken back twice is to blame."""
    host = taken_back()
    host.wait(RETURN + 2)
    host.apply(TWO)
    host.is_lost = True
    assert host.wait(PATIENCE + 1) == ONE
    host.is_lost = False
    host.wait(10 * RETURN)
    assert host.is_held
    host.revision = 9
    host.wait(1)
    assert not host.is_held


def test_an_operator_ends_a_hold() -> None:
    """Then nothing is left to wait for."""
    host = taken_back()
    host.is_held = False
    host.wait(1)
    assert host.dead_man.next_due() is None
