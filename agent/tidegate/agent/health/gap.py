# SPDX-License-Identifier: Apache-2.0
"""From a loss of contact with etcd to the moment at which every host's verdicts were read anew.

What is read when etcd is back is what hosts found before: nobody could write meanwhile, or a backup
has been restored that is older still. For a while it looks like any other verdict. So while the gap
is open no verdict brings back a backend that is out and that this host does not find alive; and
after a long one, by which hosts go by their own findings alone, they go on alone.

It closes when all of them have said, since then, that their verdicts are up to date. "Since then"
is told without any clock but this host's own and etcd's order of writes. This host writes a
confirmation, and knows that it began to after the gap was noticed (`number` is a monotonic time).
Once that has been read back, any confirmation of a later revision was written later. A host writes
its verdicts before it confirms them, so whoever has confirmed has no older ones there.

Who does not confirm is waited for no longer than verdicts can outlive their host. Who never does (a
control system, or an agent of an older version) is given the time in which an agent would have
written; what it says is not bound to a lease, or goes with it.
"""

from collections.abc import Iterable, Mapping
from math import inf

from tidegate.agent.health.ballots import Confirmed

_LEASES = 3
"""Times a lease after which no verdict of the dead is left: etcd may prolong one when it starts."""


class Gap:
    """One at a time; times are monotonic seconds.

    Args:
        host: this one.
        settle: seconds in which an agent that runs has noticed that etcd is back, and written.
        ttl: seconds of a lease.
    """

    def __init__(self, host: str, settle: float, ttl: float) -> None:
        self._host = host
        self._settle = settle
        self._patience = max(settle, _LEASES * ttl)
        self._noticed = -inf
        self.is_open = False
        """Whether not all verdicts were read anew since contact was lost."""
        self.is_long = False
        """Whether contact was lost for so long that this host goes by its own findings."""

    def note(self, now: float, *, is_long: bool) -> None:
        """Take note that contact is lost, or was until now."""
        self._noticed, self.is_open = now, True
        self.is_long |= is_long

    def judge(self, now: float, voters: Iterable[str], confirmed: Mapping[str, Confirmed]) -> None:
        """Close it if that may be.

        Args:
            now: s.
            voters: hosts that have cast votes, this one aside.
            confirmed: when each host that confirms did so last, as read.
        """
        if self.is_open and self._is_over(now, voters, confirmed):
            self.is_open = self.is_long = False

    def _is_over(
        self, now: float, voters: Iterable[str], confirmed: Mapping[str, Confirmed]
    ) -> bool:
        waited = now - self._noticed
        if waited > self._patience:
            return True
        own = confirmed.get(self._host)
        if own is None or not self._noticed < own.said.number / 1e9 <= now:
            return False
        each = [confirmed.get(host) for host in voters]
        if any(one is not None and one.revision < own.revision for one in each):
            return False
        return waited > self._settle or None not in each
