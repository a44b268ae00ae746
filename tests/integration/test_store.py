# SPDX-License-Identifier: Apache-2.0
"""An operator's connection to a real etcd: transactions with conditions, and errors for people."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.etcd.server import EtcdServer, free_port
from tidegate.cli import etcd_options
from tidegate.errors import ConfigError, KeyspaceError
from tidegate.keyspace.etcd.store import Fleet, Store
from tidegate.keyspace.etcd.transaction import Committed, Conflict, Write


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


def given(*arguments: str) -> Fleet:
    """Return what a command makes of its options."""
    parser = argparse.ArgumentParser()
    etcd_options.add_options(parser)
    return etcd_options.fleet(parser.parse_args(arguments))


@pytest.fixture
def store(etcd: EtcdServer, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Give a fleet of the test's own."""
    fleet = given("--endpoints", etcd.endpoint, "--fleet", f"f{abs(hash(request.node.name))}")
    with Store(fleet) as opened:
        yield opened


def test_writes_are_made_together_or_not_at_all(store: Store) -> None:
    """One key that is not as expected keeps all from being written, and is named."""
    made = store.commit([Write("hosts/a", b"1", 0), Write("hosts/b", b"2", 0)])
    assert isinstance(made, Committed)
    other = store.commit([Write("hosts/b", b"other", made.revision)])
    assert isinstance(other, Committed)
    refused = store.commit(
        [Write("hosts/a", None, made.revision), Write("hosts/b", b"3", made.revision)]
    )
    assert isinstance(refused, Conflict)
    assert list(refused.found) == ["hosts/b"]
    assert "hosts/b was changed at revision" in str(refused)
    seen = store.read("hosts/")
    assert {key: d.value for key, d in seen.documents.items()} == {
        "hosts/a": b"1",
        "hosts/b": b"other",
    }
    assert seen.revision >= other.revision


def test_a_write_whose_answer_was_lost_counts_as_made(store: Store) -> None:
    """Sent again, it finds its own values, and that is no conflict; another's values are one."""
    writes = [Write("fleet", b"x", 0), Write("tracks/a", b"y", 0)]
    assert isinstance(store.commit(writes), Committed)
    assert isinstance(store.commit(writes), Committed)
    assert isinstance(store.commit([Write("fleet", b"z", 0)]), Conflict)


def test_an_absent_key_is_named_when_it_was_expected(store: Store) -> None:
    """What somebody has deleted is not written again."""
    refused = store.commit([Write("tracks/gone", b"1", 7)])
    assert str(refused) == "somebody else wrote in the meantime: tracks/gone was deleted"


def test_an_etcd_that_is_away_is_named_with_its_endpoints() -> None:
    """The error says where it was looked for, why that failed, and what to look at."""
    nowhere = f"127.0.0.1:{free_port()}"
    with (
        Store(given("--endpoints", nowhere), patience=0.7) as store,
        pytest.raises(KeyspaceError) as error,
    ):
        store.read("fleet")
    assert nowhere in str(error.value)
    assert "UNAVAILABLE" in str(error.value)
    assert "--endpoints" in str(error.value)


def test_a_file_and_options_go_together(tmp_path: Path) -> None:
    """Only fleet and [etcd] of the agent's file are read, and an option counts before them."""
    file = tmp_path / "agent.toml"
    file.write_text('fleet = "edge"\nanything = 1\n[etcd]\nendpoints = ["a:1", "b:2"]\n')
    fleet = given("-c", str(file))
    assert (fleet.name, fleet.etcd.endpoints) == ("edge", ("a:1", "b:2"))
    fleet = given("-c", str(file), "--fleet", "core", "--root", "/x", "--endpoints", "c:3")
    assert (fleet.name, fleet.etcd.root, fleet.etcd.endpoints) == ("core", "/x", ("c:3",))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('[etcd]\nendpoint = ["a:1"]\n', "endpoint"),
        ("fleet = 1\n", "fleet"),
        ("fleet", "TOML"),
        ('[etcd]\ncert = "x"\n', "etcd.key is missing"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, part: str) -> None:
    """A wrong key of the file is refused by name, and so are settings that need each other."""
    file = tmp_path / "agent.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part):
        given("-c", str(file))
