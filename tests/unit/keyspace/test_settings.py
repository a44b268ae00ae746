# SPDX-License-Identifier: Apache-2.0
"""The `[etcd]` table and the keys made from it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from tidegate.errors import ConfigError
from tidegate.keyspace import paths
from tidegate.keyspace.etcd.settings import EtcdSettings, check, split_endpoint, targets


def test_defaults_are_good() -> None:
    """An empty table is a local etcd without TLS."""
    settings = msgspec.convert(tomllib.loads(""), EtcdSettings)
    check(settings)
    assert targets(settings) == ("127.0.0.1:2379",)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"root": "tidegate"}, "etcd.root"),
        ({"root": "/tidegate/"}, "etcd.root"),
        ({"endpoints": ["http://a:2379"]}, "etcd.endpoints"),
        ({"endpoints": ["a"]}, "etcd.endpoints"),
        ({"endpoints": ["a:0"]}, "etcd.endpoints"),
        ({"endpoints": ["a:65536"]}, "etcd.endpoints"),
        ({"endpoints": ["::1:2379"]}, "etcd.endpoints"),
        ({"endpoints": ["a:1,b:1"]}, "etcd.endpoints"),
        ({"cert": "c", "ca": "a"}, "etcd.key"),
        ({"key": "k", "ca": "a"}, "etcd.cert"),
        ({"cert": "c", "key": "k"}, "etcd.ca"),
        ({"server_name": "etcd"}, "etcd.ca"),
        ({"user": "u"}, "etcd.password_file"),
        ({"password_file": "f"}, "etcd.user"),
        ({"user": "u", "password_file": "f", "endpoints": ["10.0.0.1:2379"]}, "etcd.ca"),
        ({"silence_limit": 1.0}, "etcd.silence_limit"),
    ],
)
def test_a_contradiction_names_its_key(table: dict[str, object], key: str) -> None:
    """Settings that cannot work are refused before anything is sent."""
    settings = msgspec.convert(table, EtcdSettings)
    with pytest.raises(ConfigError, match=key):
        check(settings)


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"endpoint": ["a:1"]}, "endpoint"),
        ({"page_size": 0}, "page_size"),
        ({"endpoints": []}, "endpoints"),
    ],
)
def test_wrong_fields_are_refused_with_their_place(table: dict[str, object], place: str) -> None:
    """Unknown fields and values out of range do not pass the conversion."""
    with pytest.raises(msgspec.ValidationError, match=place):
        msgspec.convert(table, EtcdSettings)


def test_a_user_without_tls_is_accepted_on_loopback() -> None:
    """On loopback nobody can listen to the password."""
    ends = ("127.0.0.1:1", "[::1]:1", "localhost:1")
    check(EtcdSettings(user="u", password_file="f", endpoints=ends))  # noqa: S106 - a path


def test_endpoints_are_split() -> None:
    """IPv6 addresses lose their brackets."""
    assert split_endpoint("[2001:db8::1]:2379") == ("2001:db8::1", 2379)
    assert split_endpoint("etcd.example:2379") == ("etcd.example", 2379)


@pytest.mark.parametrize(
    ("ends", "tls", "wanted"),
    [
        (("10.0.0.1:1", "10.0.0.2:1"), {}, ("ipv4:10.0.0.1:1,10.0.0.2:1",)),
        (("[::1]:1", "[::2]:1"), {}, ("ipv6:[::1]:1,[::2]:1",)),
        (("a:1", "b:1"), {}, ("a:1", "b:1")),
        (("10.0.0.1:1", "b:1"), {}, ("10.0.0.1:1", "b:1")),
        (("10.0.0.1:1", "10.0.0.2:1"), {"ca": "c"}, ("10.0.0.1:1", "10.0.0.2:1")),
        (
            ("10.0.0.1:1", "10.0.0.2:1"),
            {"ca": "c", "server_name": "etcd"},
            ("ipv4:10.0.0.1:1,10.0.0.2:1",),
        ),
    ],
)
def test_several_endpoints_become_targets(
    ends: tuple[str, ...], tls: dict[str, str], wanted: tuple[str, ...]
) -> None:
    """GRPC fails over within one target where it can; else the client takes turns."""
    assert targets(EtcdSettings(endpoints=ends, **tls)) == wanted


def test_keys_are_put_together() -> None:
    """Prefixes end with a slash, so that release `a` does not see release `ab`."""
    assert paths.release_prefix("/tidegate", "edge") == "/tidegate/edge/config/live/"
    assert paths.status_key("/tidegate", "edge", "lb1") == "/tidegate/edge/status/lb1"
    assert paths.backend_key("web", "a") == "pools/web/backends/a"


@pytest.mark.parametrize("bad", ["", "a/b", "-a", "x" * 64])
def test_a_part_that_is_not_a_name_is_refused(bad: str) -> None:
    """A host or fleet cannot reach into another's keys."""
    with pytest.raises(ConfigError, match="host"):
        paths.status_key("/tidegate", "edge", bad)
    with pytest.raises(ConfigError, match="fleet"):
        paths.release_prefix("/tidegate", bad)


def test_the_end_of_a_prefix_is_the_first_key_after_it() -> None:
    """Etcd's range ends are exclusive; all-0xff prefixes reach to the end of the keyspace."""
    assert paths.prefix_end(b"/a/") == b"/a0"
    assert paths.prefix_end(b"a\xff") == b"b"
    assert paths.prefix_end(b"\xff") == b"\0"


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        ("", ""),
        # Whoever imports it first, on a current protobuf, has broken it for the process.
        (
            "import sys, types; sys.modules['etcd3'] = types.ModuleType('etcd3')",
            "CapabilityError: the package etcd3 was imported before",
        ),
    ],
)
def test_etcd3_loads_without_warnings_or_says_why_not(first: str, wanted: str) -> None:
    """In a process of its own, with warnings as errors, the schema has etcd 3.4's fields."""
    code = f"""{first}
from tidegate.keyspace.etcd.etcd3_loader import load
m = load().etcdrpc
assert load() is load()
request = m.WatchRequest(progress_request=m.WatchProgressRequest())
assert request.SerializeToString() == bytes([0x1A, 0]), "field 3, empty"
create = m.WatchRequest(create_request=m.WatchCreateRequest(fragment=True))
assert create.WhichOneof("request_union") == "create_request"
assert m.WatchResponse.FromString(bytes([0x38, 1])).fragment, "field 7"
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[3] / "agent")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode != 0) == bool(wanted), done.stderr
    assert wanted in done.stderr
