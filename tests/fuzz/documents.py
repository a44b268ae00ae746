# SPDX-License-Identifier: Apache-2.0
"""Random documents, drawn from the documents' own types, so that a new field is drawn from at once.

What validation refuses is left out: a drawn document may break a rule between fields.
"""

import random
from ipaddress import ip_network
from typing import Any, Final

import msgspec
from msgspec import inspect

from tidegate.keyspace.documents.validate import validate
from tidegate.model.documents import BackendDocument, PoolDocument, VipDocument
from tidegate.model.values import EMPTY, Desired, Document, Snapshot

Keys = dict[str, dict[str, Any]]

POOLS: Final = ("web", "canary")
VIPS4: Final = ("10.99.0.1", "10.99.0.2", "10.98.0.0/24")
VIPS6: Final = ("fd99::1", "fd99::2", "fd98::/112")
PREFIXES: Final = ("10.77.0.0/24", "10.77.0.9/32", "0.0.0.0/0", "fd77::/64", "fd77::9/128", "::/0")
PORTS: Final = (80, 53, 443, 0)
SERVER_ID_BYTES: Final = (2, 2, 2, 2, 1, 15)
AGE: Final = 100
"""Seconds by which flows and fragments are made older at some changes of documents."""
TIMES: Final = ("1970-01-01T00:00:01Z", "1970-01-01T00:16:45Z", "1970-01-02T00:00:00Z")
"""Long ago, soon after a session's first second, and far off."""
_RARELY: Final = 0.2  # how often an optional field is there
# What checks find is not in the documents, and no value is made of whose trace one belongs to.
_NO_PACKETS_MATTER = {"health", "traceparent"}
_OFTEN: Final = {
    "tracking": 0.4,
    "encapsulation": 0.4,
    "deny": 0.3,
    "source_routes": 0.3,
    "quic": 0.6,
    "quic_server_id": 0.9,
    "syn_limit": 0.6,
    "sorry_pool": 0.5,
}


def draw(chance: random.Random, vips: int) -> Keys:
    """Draw documents of one to so many VIPs, and up to eight backends in two pools."""
    keys: Keys = {f"pools/{pool}": _document(chance, PoolDocument) for pool in POOLS}
    for number in range(chance.randint(1, vips)):
        keys[f"vips/v{number}"] = _repaired(_document(chance, VipDocument))
    for number in range(chance.choice([0, 2, 4, 8, 8, 8, 8])):
        pool = chance.choice(POOLS)
        document = _document(chance, BackendDocument)
        if document.get("state") != "drain":
            document.pop("drain_deadline", None)  # it would be refused
        keys[f"pools/{pool}/backends/b{number}"] = document
    return accepted(keys)


def _repaired(vip: dict[str, Any]) -> dict[str, Any]:
    """Return the VIP without common faults, such as client networks of the other family."""
    version = ip_network(vip["address"]).version
    if "deny" in vip:
        vip["deny"] = [each for each in vip["deny"] if ip_network(each).version == version]
    if "source_routes" in vip:
        routes = vip["source_routes"].items()
        vip["source_routes"] = {k: v for k, v in routes if ip_network(k).version == version}
    if vip["protocol"] == "tcp":
        vip.pop("quic", None)
    if vip.get("sorry_pool") == vip["pool"]:
        del vip["sorry_pool"]
    return vip


def step(chance: random.Random, keys: Keys, vips: int) -> Keys:
    """Draw a change: some keys are new, some gone, most as before."""
    fresh = draw(chance, vips)
    before = {key: document for key, document in keys.items() if chance.random() > _RARELY / 2}
    after = {key: document for key, document in fresh.items() if chance.random() < _RARELY}
    return accepted({**fresh, **before, **after} if chance.random() < _RARELY else before | after)


def accepted(keys: Keys) -> Keys:
    """Return the accepted documents: without refused ones and those that refer to them."""
    while refused := {rejection.key for rejection in validate(snapshot(keys), EMPTY).rejections}:
        keys = {key: document for key, document in keys.items() if key not in refused}
    return keys


def snapshot(keys: Keys) -> Snapshot:
    """Return documents as etcd would hold them."""
    return Snapshot(
        1,
        {
            key: Document(msgspec.json.encode(document), number, number)
            for number, (key, document) in enumerate(keys.items(), 1)
        },
    )


def desired(keys: Keys) -> Desired:
    """Return what accepted documents ask for."""
    wanted, rejections = validate(snapshot(keys), EMPTY)
    assert not rejections, [str(rejection) for rejection in rejections]
    return wanted


def _document(chance: random.Random, kind: type[msgspec.Struct]) -> dict[str, Any]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return _struct(chance, described, kind is VipDocument)


def _struct(chance: random.Random, kind: inspect.StructType, is_vip: bool) -> dict[str, Any]:
    return {
        field.encode_name: _value(chance, field.type, field.name, is_vip)
        for field in kind.fields
        if field.name not in _NO_PACKETS_MATTER
        and (field.required or chance.random() < _OFTEN.get(field.name, _RARELY))
    }


def _value(chance: random.Random, kind: inspect.Type, name: str, is_vip: bool) -> Any:
    match kind:
        case inspect.Metadata(type=inner):
            return _value(chance, inner, name, is_vip)
        case inspect.UnionType(types=types):
            some = [each for each in types if not isinstance(each, inspect.NoneType)]
            wanted = chance.choice(some if chance.random() > _RARELY else types)
            return _value(chance, wanted, name, is_vip)
        case inspect.StructType():
            return _struct(chance, kind, is_vip)
        case inspect.StrType():
            return _text(chance, name, is_vip)
        case inspect.IntType(ge=low, le=high):
            return _number(chance, name, low or 0, 1 << 20 if high is None else high)
    return _simple(chance, kind, name)


def _simple(chance: random.Random, kind: inspect.Type, name: str) -> Any:
    match kind:
        case inspect.DictType():  # of source routes
            some = chance.sample(PREFIXES, chance.randint(0, 3))
            return {prefix: chance.choice(POOLS) for prefix in some}
        case inspect.ListType() | inspect.VarTupleType():
            return chance.sample(PREFIXES, chance.randint(0, 3))
        case inspect.LiteralType(values=values):
            # The first is what most have, so that most backends serve.
            return chance.choice([values[0], *values])
        case inspect.BoolType():
            return chance.random() < 0.5
        case inspect.NoneType():
            return None
    raise AssertionError(f"draw values of {kind} for the field {name}")


def _number(chance: random.Random, name: str, low: int, high: int) -> int:
    if name == "port":
        return max(low, chance.choice(PORTS))
    if name in {"insert_limit", "rate"}:
        # The kernel and the spec look at the clock separately, so nothing between: see `Session`.
        return chance.choice([low, low, low if name == "rate" else 1_000_000, 1_000_000])
    if name == "udp_idle_timeout":
        return chance.choice([0, AGE // 2, high])
    if name == "server_id_length":
        return chance.choice(SERVER_ID_BYTES)
    if name == "weight":
        return chance.choice([0, 1, 100, 100, 100])
    return chance.choice([low, high, min(high, low + 1), chance.randint(low, high)])


def _text(chance: random.Random, name: str, is_vip: bool) -> str:
    if name == "address" and is_vip:
        return chance.choice(VIPS4 + VIPS6)
    if name == "address":
        return chance.choice(["10.1.0.", "10.2.0.", "fd01::"]) + str(chance.randint(1, 9))
    if name in {"pool", "sorry_pool"}:
        return chance.choice(POOLS)
    if name == "quic_server_id":
        return chance.randbytes(chance.choice(SERVER_ID_BYTES)).hex()
    if name in {"starts_at", "drain_deadline"}:
        return chance.choice(TIMES)
    raise AssertionError(f"draw values of the field {name}")
