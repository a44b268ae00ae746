# SPDX-License-Identifier: Apache-2.0
"""`tidegate health` on a real etcd: what an operator sees, and the exit codes."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from support.etcd.server import EtcdServer
from tidegate.cli.main import main
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.etcd.store import Fleet, Store
from tidegate.keyspace.etcd.transaction import Write

SINCE = "2026-01-31T12:00:00Z"
CHECK = {"health": {"check": {"type": "tcp"}}}
RELEASE = {
    "config/r2/pools/web": CHECK,
    "config/r2/pools/plain": {},
    "config/r2/pools/plain/backends/p1": {"address": "198.51.100.9"},
} | {f"config/r2/pools/web/backends/b{n}": {"address": f"198.51.100.{n}"} for n in range(1, 5)}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


def verdict(state: str, code: str, reason: str = "") -> dict[str, str]:
    return {"state": state, "code": code, "reason": reason, "since": SINCE}


def status(**fields: Any) -> dict[str, Any]:
    return {"state": "synced", "ready": True, "generation_release": "r2", **fields}


def verdicts(host: str, signs: str) -> dict[str, dict[str, str]]:
    """Of b1, b2, …: `+` or `-`."""
    passed, failed = verdict("healthy", "passed"), verdict("unhealthy", "timeout", f"{host}: late.")
    return {
        f"health/{host}/web/b{place}": passed if sign == "+" else failed
        for place, sign in enumerate(signs, start=1)
    }


@pytest.fixture
def run(
    etcd: EtcdServer, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Write keys of a fleet of the test's own, then run the command on it."""
    fleet = f"f{abs(hash(request.node.name))}"

    def called(keys: Mapping[str, object], *arguments: str) -> tuple[int, str, str]:
        with Store(Fleet(EtcdSettings(endpoints=(etcd.endpoint,)), fleet)) as store:
            writes = [Write(key, json.dumps(value).encode(), 0) for key, value in keys.items()]
            if writes:
                store.commit(writes)
        code = main(["health", "--endpoints", etcd.endpoint, "--fleet", fleet, *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return called


def test_all_is_well(run: Run) -> None:
    """One line for each backend, of the release that hosts have in force; exit code 0."""
    keys = RELEASE | {"status/lb1": status(), "status/lb2": status()}
    keys |= verdicts("lb1", "++++") | verdicts("lb2", "++++")
    code, out, _ = run(keys)
    assert code == 0
    assert out.startswith("release r2, revision ")
    assert "pool web (fleet): 4 of 4 healthy" in out
    assert "2 of 2 votes" in out
    assert "pool plain (none): 0 of 1 healthy" in out
    assert "its pool has no health" in out
    assert "host lb1: synced; ready" in out


def test_a_dead_backend_is_shown_with_each_hosts_finding(run: Run) -> None:
    """The votes, the code, and what each of the hosts says; exit code 1."""
    keys = RELEASE | {"status/lb1": status(), "status/lb2": status(), "status/lb3": status()}
    keys |= verdicts("lb1", "-+++") | verdicts("lb2", "-+++") | verdicts("lb3", "++++")
    code, out, _ = run(keys, "web", "--bad")
    assert code == 1
    (line,) = [each for each in out.splitlines() if each.startswith("  b")]
    assert line.split()[:3] == ["b1", "unhealthy", "timeout"]
    assert "2 of 3 votes" in line
    assert "lb1: unhealthy, timeout, " in out
    assert "lb2: late." in out
    assert "lb3: healthy, passed, " in out
    assert "host lb1" not in out


def test_json_has_everything(run: Run) -> None:
    """States by the documents too, in the vocabulary of verdicts."""
    keys = RELEASE | {"status/lb1": status()} | verdicts("lb1", "-+")
    keys["health/lb1/web/b3"] = verdict("initial", "checking", "2 more must pass.")
    drained = {"address": "198.51.100.7", "state": "drain"}
    keys |= {"config/r2/pools/web/backends/b7": drained}
    keys |= {"config/r2/pools/web/backends/b8": {"address": "198.51.100.8", "state": "disabled"}}
    code, out, _ = run(keys, "web", "--json")
    assert code == 1
    report = json.loads(out)
    (pool,) = report["pools"]
    rows = {row["backend"]: row for row in pool["backends"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "b1": "unhealthy",
        "b2": "healthy",
        "b3": "initial",
        "b4": "initial",
        "b7": "draining",
        "b8": "unused",
    }
    assert (rows["b1"]["votes"], rows["b1"]["voters"], rows["b1"]["reason"]) == (1, 1, "lb1: late.")
    assert rows["b1"]["since"] == "2026-01-31T12:00:00.000Z"
    assert rows["b3"]["reason"] == "2 more must pass."
    assert rows["b1"]["hosts"][0]["host"] == "lb1"


def test_a_blind_host_and_one_that_is_not_ready_are_named(run: Run) -> None:
    """Its findings are shown as ones that do not count; nothing is unhealthy, and it is a 1."""
    panic = {"panics": ["web"], "waiting": 2}
    keys = RELEASE | {
        "status/lb1": status(),
        "status/lb2": status(health=panic),
        "status/lb3": status(ready=False, ready_reason="The program is not on eth0."),
    }
    keys |= verdicts("lb1", "++++") | verdicts("lb2", "++++") | verdicts("lb3", "----")
    code, out, _ = run(keys, "--bad")
    assert code == 1
    assert "pool web (fleet): 4 of 4 healthy" in out
    assert "lb3: unhealthy, timeout" in out
    assert "(blind: does not count)" in out
    assert "NOT ready: The program is not on eth0.; blind: its verdicts do not count" in out
    assert "panic, keeps all of web; 2 unhealthy wait" in out


def test_whose_verdicts_are_in_doubt_is_said(run: Run) -> None:
    """A host that does not come to check is a 1; a confirmation is no verdict, and not shown."""
    doubts = {"late": 3, "unconfirmed": ["lb2"], "overwritten": 7}
    keys = RELEASE | verdicts("lb1", "++++")
    keys |= {"health/lb1/@confirmed": {"number": 5, "every": 5.0}}
    code, out, _ = run(keys | {"status/lb1": status(health=doubts)})
    assert code == 1
    assert "its checks of 3 are late" in out
    assert "misses the word of lb2" in out
    assert "7 of its verdicts were overwritten by others" in out
    assert "refused" not in out


def test_what_cannot_be_read_is_named(run: Run) -> None:
    """A verdict or a status that somebody broke does not keep the rest from being shown."""
    keys: dict[str, object] = {**RELEASE, "status/lb1": status(), "status/lb2": 7}
    keys |= {"health/lb1/web/b1": {"state": "ill"}, **verdicts("lb2", "++++")}
    code, out, _ = run(keys)
    assert code == 1
    assert "refused: health/lb1/web/b1: " in out
    assert "host lb2: unknown; NOT ready: its status cannot be read" in out
    assert "pool web (fleet): 4 of 4 healthy" in out


def test_a_pool_that_is_not_there_is_said(run: Run) -> None:
    """Exit code 2, with the pools that there are."""
    code, _, err = run(RELEASE, "shop", "--release", "r2")
    assert (code, "release r2 has no pool shop; it has: plain, web" in err) == (2, True)
