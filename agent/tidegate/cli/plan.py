# SPDX-License-Identifier: Apache-2.0
"""`tidegate plan`: what files of documents would do to this host's data plane, without doing it.

Only arguments and printing: `dataplane/inspect/forecast.py` computes the answer.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tidegate.cli.validate import FILES, REFUSED, add_files, as_json, show

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from tidegate.dataplane.inspect.forecast import Forecast
    from tidegate.planner.diff import Names
    from tidegate.planner.guards import Limits

_ABOUT: Final = f"""\
Show what documents would do to this host's data plane if they were its release: what is added,
changed and removed, how many slots of each pool's table move, each backend's share, and what
happens to the flows that are tracked now. Nothing is changed. The agent may run meanwhile; neither
it nor etcd is asked, so overrides of guards are not known.

{FILES}"""
_EPILOG: Final = """\
exit codes: 0 the agent would do it; 2 wrong usage or host; 3 documents are refused; 4 they are
valid, and a guard would refuse the change

examples:
  tidegate plan -f release/ -c /etc/tidegate/agent.toml
  tidegate plan -f release.yaml --json | jq .flows
"""
_GUARDED: Final = 4
_NAMED: Final = 20
"""Names that are listed one by one for people; --json has all."""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plan` to the command line."""
    command = subparsers.add_parser(
        "plan",
        help="what documents would do to this host's data plane",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_files(command)
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help="the agent's file: its pin_dir and its guards",
    )
    where.add_argument(
        "--pins",
        type=Path,
        default=Path("/sys/fs/bpf/tidegate"),
        metavar="DIR",
        help="the folder of the pins (default %(default)s), with the guards' defaults",
    )
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tidegate.keyspace.documents import files

    documents = files.read(options.files)
    desired, faults = documents.check()
    if faults:
        if options.json:
            print(json.dumps(as_json(faults, documents), indent=2))
        else:
            show(faults, documents)
        return REFUSED
    from tidegate.dataplane.inspect.forecast import forecast

    pins, limits = _where(options)
    found = forecast(desired, pins, limits)
    if options.json:
        print(json.dumps({**as_json((), documents), **_json(found)}, indent=2))
    else:
        show((), documents)
        for line in _lines(found, pins):
            print(line)
    return _GUARDED if found.refusals else 0


def _where(options: argparse.Namespace) -> "tuple[Path, Limits]":
    from tidegate.planner.guards import Limits

    if options.config is None:
        return options.pins, Limits()
    from tidegate.agent import config

    found = config.read(options.config)
    return Path(found.pin_dir), found.limits()


def _json(found: "Forecast") -> dict[str, Any]:
    """Return the whole answer for programs."""
    after = found.after
    return {
        "generation": found.before.number,
        "revision": found.before.revision,
        "vips": found.diff.vips._asdict(),
        "pools": found.diff.pools._asdict(),
        "backends": found.diff.backends._asdict(),
        "fields": found.changed,
        "tables": {name: _table(found, name) for name in sorted(after.pools if after else ())},
        "on_sorry_pool": after.on_sorry_pool if after else (),
        "flows": _flows(found),
        "refusals": found.refusals,
    }


def _table(found: "Forecast", pool: str) -> dict[str, Any]:
    from tidegate.dataplane.inspect.forecast import shares
    from tidegate.model.constants import TABLE_SIZE

    move = found.diff.moves.get(pool)
    before, after = shares(found.before, pool), shares(found.after, pool)
    return {
        "slots": TABLE_SIZE,
        "moved": move.moved if move else 0,
        "minimum": move.minimum if move else 0,
        "bound": move.bound if move else 0,
        "shares": {
            name: {"before": before.get(name, 0.0), "after": after.get(name, 0.0)}
            for name in sorted(before.keys() | after.keys())
        },
    }


def _flows(found: "Forecast") -> dict[str, Any] | None:
    flows = found.flows
    if flows is None:
        return None
    return {
        "tracked": flows.tracked,
        "stale": flows.stale,
        "stay": flows.tracked - flows.lost - sum(flows.forgotten.values()),
        "lost_vip": flows.lost_vip,
        "lost_backend": flows.lost_backend,
        "forgotten": flows.forgotten,
        "leaving": flows.leaving,
    }


def _lines(found: "Forecast", pins: Path) -> Iterator[str]:
    """Yield the answer for people."""
    before = found.before
    if before.number == 0:
        yield f"{pins}: nothing is in force there; all is new"
    else:
        yield (
            f"{pins}: generation {before.number} of revision {before.revision}, "
            f"{len(before.vips)} VIPs, {len(before.pools)} pools, {len(before.backends)} backends"
        )
    for kind in ("vips", "pools", "backends"):
        names: Names = getattr(found.diff, kind)
        yield f"{kind}: {_names(names)}"
        yield from _listed(found, kind, names)
    if found.after is not None and found.after.on_sorry_pool:
        yield f"on their sorry pool: {', '.join(found.after.on_sorry_pool)}"
    for pool in sorted(found.diff.moves):
        yield from _pool(found, pool)
    if found.flows is not None:
        yield from _flow_lines(found)
    yield from (f"refused: {reason}" for reason in found.refusals)


def _names(names: "Names") -> str:
    kinds = ("added", "removed", "changed")
    counts = [f"{len(getattr(names, kind))} {kind}" for kind in kinds if getattr(names, kind)]
    return ", ".join(counts) or "as they are"


def _listed(found: "Forecast", kind: str, names: "Names") -> Iterator[str]:
    lines = [f"  + {name}" for name in names.added]
    lines += [f"  - {name}" for name in names.removed]
    for name in names.changed:
        fields = ", ".join(found.changed.get(f"{kind}/{name}", ()))
        lines.append(f"  ~ {name}" + (f" ({fields})" if fields else ""))
    yield from lines[:_NAMED]
    if len(lines) > _NAMED:
        yield f"  … and {len(lines) - _NAMED} more"


def _pool(found: "Forecast", pool: str) -> Iterator[str]:
    table = _table(found, pool)
    yield (
        f"table of {pool}: {table['moved']:,} of {table['slots']:,} slots move "
        f"(at least {table['minimum']:,}, at most {table['bound']:,})"
    )
    shares = table["shares"].items()
    lines = [
        f"  {name:<24} {share['before']:6.2f} % -> {share['after']:6.2f} %"
        for name, share in shares
        if round(share["before"], 2) != round(share["after"], 2)
    ]
    yield from lines[:_NAMED]
    if len(lines) > _NAMED:
        yield f"  … and {len(lines) - _NAMED} more"


def _flow_lines(found: "Forecast") -> Iterator[str]:
    flows = _flows(found)
    if flows is None:
        return
    yield f"tracked flows: {flows['tracked']:,}, of which {flows['stay']:,} stay where they are"
    for kind, says in (
        ("lost_vip", "end, as their VIP goes"),
        ("lost_backend", "move, as their backend goes at once"),
        ("forgotten", "are tracked no longer"),
        ("leaving", "stay until their backend's drain has ended"),
    ):
        for name, count in sorted(flows[kind].items(), key=lambda item: -item[1])[:_NAMED]:
            yield f"  {count:,} of {name} {says}"
