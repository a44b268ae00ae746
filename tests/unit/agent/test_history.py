# SPDX-License-Identifier: Apache-2.0
"""Why a generation came about, as the journal and `tidegate history` say it."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from support.documents.roster import backend, web
from tidegate.agent.config import AgentConfig, Encapsulation
from tidegate.agent.health.fitness import Evidence, evidence
from tidegate.agent.history import History
from tidegate.agent.journal import files, line_format
from tidegate.agent.outcome import Applied
from tidegate.cli.history_show import described
from tidegate.health.standing import Standing
from tidegate.health.verdict import Effective
from tidegate.model.generation import NOTHING, Generation
from tidegate.model.values import BackendKey, Desired, Document, Fitness, Snapshot
from tidegate.planner import plan
from tidegate.planner.diff import difference

B1, B2 = BackendKey("web", "b1"), BackendKey("web", "b2")
OUT = Fitness(is_out=True)
BACK = Fitness(is_out=False, joins_at=1020)
DEAD = Standing("unhealthy", "timeout", "No answer within 2 s.", 900.0)
SEEN = {
    B1: evidence(Effective("unhealthy", 900, healthy=1, unhealthy=2), DEAD),
    B2: evidence(Effective("healthy", 900, healthy=2, unhealthy=0), None),
}
WANTED = web(backend("b1"), backend("b2"), backend("b3"), slow_start=60)


class RecordedHistory:
    """An agent's past; what each generation's line says is read from the disk."""

    def __init__(self, folder: Path) -> None:
        sources = Encapsulation(source4=IPv4Network("10.0.0.1"), source6=IPv6Network("fd00::/64"))
        config = AgentConfig(
            interfaces=("eth0",), encapsulation=sources, state_dir=str(folder / "state")
        )
        self._folder = files.folder_of(folder / "state")
        self._history = History(config, NOTHING, lambda: None, self._seen)
        self.generation: Generation = NOTHING

    @staticmethod
    def _seen(keys: Sequence[BackendKey]) -> list[Evidence]:
        return [SEEN.get(key, Evidence()) for key in keys]

    def apply(
        self,
        now: int,
        fitness: Mapping[BackendKey, Fitness],
        wanted: Desired = WANTED,
        snapshot: Snapshot | None = None,
        order: str = "",
    ) -> None:
        """Bring one more generation into force."""
        before, self.generation = self.generation, plan(wanted, self.generation, now, fitness)
        diff = difference(before, self.generation)
        how = (now, 0, snapshot, frozenset[str](), order)
        self._history.applied(Applied(before, self.generation, diff, wanted, *how))

    def last(self) -> line_format.GenerationLine:
        """Return the last line of the journal; nothing is written after it."""
        self._history.close()
        step = list(files.read_all(self._folder))[-1].lines[-1]
        assert isinstance(step, line_format.GenerationLine)
        return step


def test_a_verdict_is_recorded_with_votes_and_own_finding(tmp_path: Path) -> None:
    """Which backend went out, by how many of how many votes, and why here."""
    recorded = RecordedHistory(tmp_path)
    recorded.apply(1000, {})
    recorded.apply(1010, {B1: OUT})
    step = recorded.last()
    assert step.cause.kind == "health"
    assert step.cause.verdicts == (
        line_format.HealthFinding("web/b1", True, "unhealthy", 2, 3, "No answer within 2 s."),  # noqa: FBT003 - as recorded
    )
    assert described(step)[1] == (
        "    health: web/b1 out: unhealthy by 2 of 3 votes; this host: No answer within 2 s."
    )


def test_a_return_is_recorded_and_its_ramp_is_time(tmp_path: Path) -> None:
    """The generation of the verdict says so; the steps of the slow start after it are time's."""
    recorded = RecordedHistory(tmp_path / "a")
    recorded.apply(1000, {B2: OUT})
    recorded.apply(1020, {B2: BACK})
    assert described(recorded.last())[1] == "    health: web/b2 in: healthy by 2 of 2 votes"
    later = RecordedHistory(tmp_path / "b")
    later.apply(1000, {B2: OUT})
    later.apply(1020, {B2: BACK})
    later.apply(1050, {B2: BACK})
    step = later.last()
    assert (step.cause.kind, step.cause.verdicts) == ("time", ())
    assert step.cause.what == "weights by time or deadlines: web/b2"


def test_a_backend_that_is_kept_though_dead_is_recorded_so(tmp_path: Path) -> None:
    """In a panic it comes back in against its verdict."""
    recorded = RecordedHistory(tmp_path)
    recorded.apply(1000, {B1: OUT})
    recorded.apply(1010, {})
    assert "web/b1 in: unhealthy by 2 of 3 votes, and kept" in described(recorded.last())[1]


def test_keys_and_orders_stay_the_cause_beside_a_verdict(tmp_path: Path) -> None:
    """Both are recorded, the key or the order first; `--key` finds the backend either way."""
    recorded = RecordedHistory(tmp_path / "a")
    recorded.apply(1000, {})
    fewer = web(backend("b1"), backend("b2"), slow_start=60)
    keys = {"pools/web/backends/b1": Document(b"", 7), "pools/web/backends/b2": Document(b"", 8)}
    recorded.apply(1010, {B1: OUT}, fewer, Snapshot(9, keys))
    step = recorded.last()
    assert step.cause.kind == "keys"
    said = described(step)
    assert said[1].startswith("    keys: ")
    assert said[2].startswith("    health: web/b1 out")
    ordered = RecordedHistory(tmp_path / "b")
    ordered.apply(1000, {})
    ordered.apply(1010, {B1: OUT}, fewer, order="back to 1, by root")
    step = ordered.last()
    assert (step.cause.kind, len(step.cause.verdicts)) == ("rollback", 1)


def test_a_line_lists_so_many_verdicts_and_counts_the_rest(tmp_path: Path) -> None:
    """The journal's lines are bounded."""
    names = [f"b{number:03}" for number in range(line_format.MOST_FINDINGS + 7)]
    many = web(*(backend(name) for name in names))
    recorded = RecordedHistory(tmp_path)
    recorded.apply(1000, {}, many)
    recorded.apply(1010, {BackendKey("web", name): OUT for name in names[1:]}, many)
    step = recorded.last()
    assert (len(step.cause.verdicts), step.cause.verdicts_left_out) == (
        line_format.MOST_FINDINGS,
        6,
    )
    assert "    health: 86 more" in described(step)
