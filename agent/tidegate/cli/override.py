# SPDX-License-Identifier: Apache-2.0
"""`tidegate override`: let a change pass that a guard would refuse, for a while and with a reason.

Only arguments and printing; `planner/guards.py` has the guards.
"""

import argparse
import re
import time
from typing import TYPE_CHECKING, Any, Final, get_args

from tidegate.cli import etcd_options
from tidegate.cli.durations import duration
from tidegate.errors import ConfigError, KeyspaceError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_LONGEST: Final = 86_400
_ABOUT: Final = """\
Guards refuse a change that takes away too much at once, and hosts say so in their statuses. An
override lifts one guard, for one pool or for all, until it expires; a change that was refused comes
into force as soon as the hosts see it. GUARD is

  vips        many or all VIPs disappear at once
  removal     many or all serving backends of a pool go at once
  disruption  a table moves more slots than its bound
"""
_EPILOG: Final = f"""\
exit codes: 0 done; 2 it cannot be done, or etcd does not answer

{etcd_options.WHERE}
examples:
  tidegate override removal --pool web --for 10m --reason "moving web to another site"
  tidegate override list
  tidegate override remove removal-web
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `override` to the command line."""
    from tidegate.model.steering import Guard

    raw = argparse.RawDescriptionHelpFormatter
    group = subparsers.add_parser(
        "override",
        help="lift a guard for a while",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=raw,
    )
    commands = group.add_subparsers(metavar="GUARD | list | remove", required=True)
    for guard in get_args(Guard):
        command = commands.add_parser(
            guard, help=f"lift the guard {guard}", description=_ABOUT, formatter_class=raw
        )
        command.add_argument("--pool", metavar="NAME", help="only for this pool (default: all)")
        command.add_argument(
            "--for",
            dest="seconds",
            type=duration,
            required=True,
            metavar="TIME",
            help="such as 10m",
        )
        command.add_argument("--reason", required=True, metavar="TEXT", help="why, for people")
        command.add_argument("--name", metavar="NAME", help="of its key (default GUARD-POOL)")
        command.set_defaults(run=_lift, guard=guard)
        etcd_options.add_options(command)
    show = commands.add_parser("list", help="all overrides, those that have expired too")
    show.set_defaults(run=_list)
    remove = commands.add_parser("remove", help="let a guard hold again at once")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=_remove)
    for command in (show, remove):
        etcd_options.add_options(command)


def _lift(options: argparse.Namespace) -> int:
    import msgspec

    from tidegate.keyspace.etcd.store import Store
    from tidegate.keyspace.etcd.transaction import Conflict, Write
    from tidegate.keyspace.paths import override_key
    from tidegate.keyspace.status.document import rfc3339
    from tidegate.model.steering import OverrideDocument

    if not 0 < options.seconds <= _LONGEST:
        raise ConfigError(f"--for is {options.seconds} s; it must be at most a day")
    document = {
        "guard": options.guard,
        "pool": options.pool,
        "expires_at": rfc3339(int(time.time()) + options.seconds),
        "reason": options.reason,
    }
    try:
        value = msgspec.json.encode(msgspec.convert(document, OverrideDocument))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{error}") from error
    name = options.name or _name(options.guard, options.pool)
    _check_name(name)
    key = override_key(name)
    with Store(etcd_options.fleet(options)) as store:
        before = store.read(key).documents.get(key)
        done = store.commit([Write(key, value, before.mod_revision if before else 0)])
    if isinstance(done, Conflict):
        raise KeyspaceError(f"{done}; look at `tidegate override list`, and try again")
    pools = f"pool {options.pool}" if options.pool else "all pools"
    replaced = " (in place of one of this name)" if before else ""
    print(f"{name}: {options.guard} is lifted for {pools} until {document['expires_at']}{replaced}")
    return 0


def _name(guard: str, pool: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9]+$", "", f"{guard}-{pool or 'all'}"[:63])


def _check_name(name: str) -> None:
    from tidegate.keyspace.paths import NAME_RULE, is_name

    if not is_name(name):
        raise ConfigError(f"the override's name is {name!r}; {NAME_RULE}")


def _list(options: argparse.Namespace) -> int:
    from tidegate.keyspace.documents.decode import decode
    from tidegate.keyspace.etcd.store import Store
    from tidegate.keyspace.paths import OVERRIDES_PREFIX
    from tidegate.model.steering import OverrideDocument

    with Store(etcd_options.fleet(options)) as store:
        documents = store.read(OVERRIDES_PREFIX).documents
    for key, document in sorted(documents.items()):
        name = key[len(OVERRIDES_PREFIX) :]
        found = decode(document.value, OverrideDocument)
        if isinstance(found, list):
            print(f"{name}: refused: {found[0].reason}")
        else:
            print(f"{name}: {_described(found)}")
    return 0


def _described(document: Any) -> str:  # noqa: ANN401 - an OverrideDocument
    from tidegate.keyspace.documents.timestamps import parse_timestamp

    moment = parse_timestamp(document.expires_at)
    is_over = isinstance(moment, str) or moment <= time.time()
    pools = f"pool {document.pool}" if document.pool else "all pools"
    when = "EXPIRED at" if is_over else "until"
    return f"{document.guard} for {pools} {when} {document.expires_at}: {document.reason}"


def _remove(options: argparse.Namespace) -> int:
    from tidegate.keyspace.etcd.store import Store
    from tidegate.keyspace.etcd.transaction import Conflict, Write
    from tidegate.keyspace.paths import override_key

    key = override_key(options.name)
    with Store(etcd_options.fleet(options)) as store:
        before = store.read(key).documents.get(key)
        if before is None:
            raise ConfigError(
                f"there is no override {options.name}; `tidegate override list` lists them"
            )
        done = store.commit([Write(key, None, before.mod_revision)])
    if isinstance(done, Conflict):
        raise KeyspaceError(f"{done}; look at `tidegate override list`, and try again")
    print(f"{options.name}: removed")
    return 0
