# SPDX-License-Identifier: Apache-2.0
"""When links are read: at changes, but never so often that the loop does nothing else."""

from tidegate.agent.link_refresh import LinkRefresh


class Clock:
    """A clock that stands still between readings."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return its time, s."""
        return self.now


class Attached:
    """What is attached, as it is set."""

    differs = False
    asked = 0

    def differ(self) -> bool:
        """Return whether something else is."""
        self.asked += 1
        return self.differs


class Links:
    """Links that take a time to read."""

    links_outdated = False
    attachments = Attached()

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds
        self.read = 0

    def follow(self) -> None:
        """Read them."""
        self.read += 1
        self.links_outdated = False
        self.clock.now += self.seconds


def test_a_change_is_followed_at_once() -> None:
    """Without one they are read every 15 s."""
    clock = Clock()
    links = Links(clock, 0.01)
    refresh = LinkRefresh(links, clock.now, clock)
    refresh.refresh(101.0, woken=False)
    assert links.read == 0
    refresh.refresh(101.0, woken=True)
    assert links.read == 1
    assert refresh.next_due() == 101.0 + 0.1  # a message has come since the last look
    for second in range(102, 116):
        refresh.refresh(float(second), woken=False)
    assert links.read == 1
    refresh.refresh(clock.now + 15, woken=False)
    assert links.read == 2


def test_who_is_attached_is_looked_at_twice_a_second() -> None:
    """If it is somebody else, everything is read at once."""
    clock = Clock()
    links = Links(clock, 0.01)
    links.attachments = Attached()
    refresh = LinkRefresh(links, clock.now, clock)
    refresh.refresh(clock.now, woken=False)
    links.attachments.differs = True
    refresh.refresh(clock.now + 0.4, woken=False)
    assert links.read == 0
    assert refresh.next_due() == clock.now + 0.5
    refresh.refresh(clock.now + 0.5, woken=False)
    assert links.read == 1


def test_a_message_has_who_is_attached_looked_at_at_once() -> None:
    """Also while the reading of links rests; but messages that never end are ten looks a second."""
    clock = Clock()
    links = Links(clock, 0.1)
    links.attachments = Attached()
    refresh = LinkRefresh(links, clock.now, clock)
    refresh.refresh(clock.now, woken=True)
    assert links.read == 1
    assert refresh.next_due() < clock.now + 0.5
    links.attachments.differs = True
    refresh.refresh(clock.now + 0.05, woken=True)
    assert links.read == 2
    links.attachments.differs = False
    for step in range(100):
        refresh.refresh(clock.now + step / 100, woken=True)
    assert links.attachments.asked <= 2 + 11


def test_routes_that_change_all_the_time_do_not_fill_the_loop() -> None:
    """A reading of 10 ms is followed by 200 ms without one; no change is forgotten."""
    clock = Clock()
    links = Links(clock, 0.01)
    refresh = LinkRefresh(links, clock.now, clock)
    while clock.now < 110.0:
        refresh.refresh(clock.now, woken=True)
        clock.now += 0.02
    assert 40 <= links.read <= 50
    before = links.read
    clock.now = refresh.next_due()
    refresh.refresh(clock.now, woken=False)
    assert links.read == before + 1


def test_backends_that_came_are_asked_about_in_the_next_turn() -> None:
    """No change of a link has to come."""
    clock = Clock()
    links = Links(clock, 0.01)
    refresh = LinkRefresh(links, clock.now, clock)
    links.links_outdated = True
    assert refresh.next_due() <= clock.now
    refresh.refresh(clock.now, woken=False)
    assert links.read == 1
