# SPDX-License-Identifier: Apache-2.0
"""What a run of the demo observed, and what it is judged by. No I/O."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tidegate.lab.claims import Claim, Measured, at_least, exactly
from tidegate.lab.failure import Absence, Death
from tidegate.lab.latency import Delay, spread
from tidegate.lab.load import Totals
from tidegate.lab.shares import LIMIT, Share
from tidegate.lab.traffic import Trouble

MIN_CHANGES: Final = 20
MIN_CONNECTIONS: Final = 2000
MIN_WITHOUT_AGENT: Final = 50
MAX_DELAY: Final = 1.0
"""Seconds from the start of etcdctl to the first packet; generous, for a loaded machine."""

VICTIM_SHARE: Final = 100 / 550
"""b2's part of either pool when it dies: b1 has 120 or 100, b2 100, b3 200, b4 100, b5 50; the
larger of the two."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the roster: what it was, the generation it made, and how long that took."""

    text: str
    generation: int
    put_to_status_ms: float


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that a run observed.

    Attributes:
        shares: phase 1, by VIP and backend.
        first: what the clients counted in phase 1.
        main: what they counted in all other phases.
        troubles: connections that went wrong, in all phases.
        changes: the roster changes of phase 2.
        generations: by how much the generation number rose over them.
        delays: of the changes that the probe saw.
        absence: the agent's death.
        death: the backend's death.
        calm_resets: RSTs that all backends' kernels sent after phase 1 and before one died.
        downloads: how many were to be kept open.
    """

    shares: Sequence[Share]
    first: Totals
    main: Totals
    troubles: Sequence[Trouble]
    changes: Sequence[Change]
    generations: int
    delays: Sequence[Delay]
    absence: Absence
    death: Death
    calm_resets: int
    downloads: int

    def claims(self) -> list[Claim]:
        """Return every claim of the demo, judged."""
        worst = max(abs(share.deviations) for share in self.shares)
        return [
            Claim(
                "shares follow the weights, on both VIPs",
                f"within {LIMIT:g} sd",
                f"at most {worst:.1f} sd off",
                all(share.holds for share in self.shares),
            ),
            at_least("roster changes under load", MIN_CHANGES, len(self.changes)),
            exactly("generations that these made", len(self.changes), self.generations),
            at_least("connections opened", MIN_CONNECTIONS, self.first.opened + self.main.opened),
            *self._unharmed(),
            *self._agent(),
            *self._backend(),
            self._delay(),
        ]

    def _unharmed(self) -> list[Claim]:
        others = [one for one in self.troubles if not self.death.of_victim(one)]
        count = {how: sum(one.how == how for one in others) for how in ("failed", "reset", "moved")}
        broken = sum(one.kind == "download" for one in others)
        return [
            exactly("failed (the dead backend's own apart)", 0, count["failed"]),
            exactly("reset (the dead backend's own apart)", 0, count["reset"]),
            exactly("moved to another backend", 0, count["moved"]),
            exactly("downloads broken (the dead backend's own apart)", 0, broken),
            exactly("downloads open at the end", self.downloads, self.main.downloads),
            exactly("RSTs sent by backends before one died", 0, self.calm_resets),
        ]

    def _agent(self) -> list[Claim]:
        gone = self.absence
        return [
            exactly("generation after the agent's SIGKILL and restart", gone.before, gone.after),
            exactly("generation of the next change", gone.after + 1, gone.following),
            at_least("connections completed without an agent", MIN_WITHOUT_AGENT, gone.completed),
        ]

    def _backend(self) -> list[Claim]:
        own = [one for one in self.troubles if self.death.of_victim(one)]
        unanswered = sum(one.backend is None for one in own)
        most = self.death.most_unanswered(VICTIM_SHARE)
        return [
            at_least("the dead backend's own connections, broken", 1, len(own)),
            Claim(
                "of these, not answered by anybody yet",
                f"≤ {most}",
                str(unanswered),
                unanswered <= most,
            ),
        ]

    def _delay(self) -> Claim:
        slowest = max(delay.from_start for delay in self.delays)
        return Claim(
            "start of etcdctl put to first packet on the new table",
            f"< {MAX_DELAY:g} s",
            f"at most {slowest * 1e3:.0f} ms",
            slowest < MAX_DELAY,
        )

    def measured(self) -> list[Measured]:
        """Return figures without a judgement."""
        delays = self.delays
        return [
            Measured(
                "start of etcdctl put to first packet", spread([d.from_start for d in delays])
            ),
            Measured("end of etcdctl put to first packet", spread([d.from_return for d in delays])),
            Measured("start of etcdctl put to status key", spread([d.to_status for d in delays])),
            Measured("SIGKILL to the next agent in sync", f"{self.absence.away:.2f} s"),
            Measured("cut link to quarantine in force", f"{self.death.seconds:.2f} s"),
            Measured("bytes of downloads checked", f"{self.main.bytes:,}"),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        claims = self.claims()
        return {
            "holds": all(claim.holds for claim in claims),
            "claims": [asdict(claim) for claim in claims],
            "measured": dict(self.measured()),
            "shares": [
                {**asdict(share), "observed": share.observed, "deviations": share.deviations}
                for share in self.shares
            ],
            "changes": [asdict(change) for change in self.changes],
            "delays": [delay._asdict() for delay in self.delays],
            "totals": {"shares": vars(self.first), "changes": vars(self.main)},
            "troubles": [
                {**asdict(one), "dead_backends_own": self.death.of_victim(one)}
                for one in self.troubles
            ],
        }
