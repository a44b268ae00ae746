# SPDX-License-Identifier: Apache-2.0
"""`tidegate apply`: make a release in etcd equal to documents in files, and wait for the hosts.

Only arguments, printing and waiting: `rollout/apply.py` says what is to be written.
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Final

from tidegate.cli import etcd_options, trace_option
from tidegate.cli.durations import duration
from tidegate.cli.validate import FILES, REFUSED, add_files, counted, show
from tidegate.errors import ConfigError, KeyspaceError
from tidegate.keyspace.paths import ROLLOUT_KEY

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Mapping

    from tidegate.keyspace.etcd.store import Store
    from tidegate.model.values import Document
    from tidegate.rollout.apply import Answer, Changes

UNACKNOWLEDGED: Final = 5
_POLL: Final = 0.5

_ABOUT: Final = f"""\
Make a release equal to documents: write what is new or differs, delete what is in none of the
files, and wait until every host that follows the release has it in force. First the documents are
checked, as by `tidegate validate`. One transaction makes all changes, up to 128 of them; a larger
change is made in several, with a note. What somebody else writes at the same time is not
overwritten.

{FILES}"""
_EPILOG: Final = f"""\
exit codes: 0 written, and acknowledged by all hosts that follow the release and are not frozen;
2 etcd does not answer, or somebody else wrote at the same time; 3 documents are refused, and
nothing was written; 5 written, and not acknowledged by a host

{etcd_options.WHERE}
examples:
  tidegate apply -f release/ --dry-run
  tidegate apply -f release/ -c /etc/tidegate/agent.toml
  tidegate apply -f release/ --release 2026-01-31.2 && tidegate rollout start 2026-01-31.2
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `apply` to the command line."""
    command = subparsers.add_parser(
        "apply",
        help="write files of documents to etcd, and wait for the hosts",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_files(command)
    command.add_argument(
        "--release", default="live", metavar="NAME", help="release that is written (default live)"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="list what would be written, and write nothing"
    )
    command.add_argument(
        "--timeout",
        type=duration,
        default=60,
        metavar="TIME",
        help="how long hosts may take to acknowledge (default 60s)",
    )
    trace_option.add_option(command)
    etcd_options.add_options(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tidegate.keyspace.documents import files
    from tidegate.keyspace.etcd.store import Store
    from tidegate.rollout import apply

    documents = files.read(options.files)
    faults = documents.check().faults
    show(faults, documents)
    if faults:
        print(f"nothing was written: {counted(len(faults), 'fault')}", file=sys.stderr)
        return REFUSED
    if not documents.values:
        raise ConfigError(
            "there are no documents in these files, and apply does not empty a release"
        )
    context = trace_option.traceparent(options)
    with Store(etcd_options.fleet(options)) as store:
        current = store.read_release(options.release).documents
        changes = apply.difference(current, documents.values)
        _show(changes, options.release, whole=options.dry_run)
        _mention_rollout(store, options.release)
        if options.dry_run:
            return 0
        wanted = apply.traced(documents.values, context) if context else documents.values
        revision = _write(store, options.release, changes, current, wanted)
        return _wait(store, options.release, revision, options.timeout)


def _show(changes: "Changes", release: str, *, whole: bool) -> None:
    from tidegate.rollout.apply import listing

    if not changes:
        print(f"release {release} already equals the files")
        return
    added, changed, deleted = map(len, (changes.added, changes.changed, changes.deleted))
    print(f"release {release}: {added} added, {changed} changed, {deleted} deleted")
    for sign, keys in (("+", changes.added), ("~", changes.changed), ("-", changes.deleted)):
        for line in listing(sign, keys, whole=whole):
            print(line)


def _mention_rollout(store: "Store", release: str) -> None:
    """Note a rollout that is moving hosts to this release: they get the changes unwatched."""
    from tidegate.model.rollout import ENDED
    from tidegate.rollout.fleet import observe

    rollout = observe(store.read(ROLLOUT_KEY)).rollout
    if rollout is not None and rollout.release == release and rollout.state not in ENDED:
        state = "paused" if rollout.paused else rollout.state
        print(f"note: a rollout of {release} is under way ({state})", file=sys.stderr)


def _write(
    store: "Store",
    release: str,
    changes: "Changes",
    current: "Mapping[str, Document]",
    wanted: "Mapping[str, bytes]",
) -> int:
    """Make the changes; return the revision of the last one, 0 if there is none.

    Raises:
        KeyspaceError: somebody else wrote at the same time.
    """
    from tidegate.keyspace.etcd.transaction import Conflict
    from tidegate.rollout import apply

    parts = apply.transactions(release, changes, current, wanted)
    if len(parts) > 1:
        print(f"written in {len(parts)} transactions, too large for one: hosts see it in parts")
    revision = 0
    for number, part in enumerate(parts):
        done = store.commit(part)
        if isinstance(done, Conflict):
            made = f"{number} of {len(parts)} transactions were made" if number else ""
            raise KeyspaceError(
                f"{done}; {made or 'nothing was written'}; look at it, and apply again"
            )
        revision = done.revision
    after = store.read_release(release).documents
    foreign = apply.difference(after, wanted)
    if foreign:
        keys = (*foreign.added, *foreign.changed, *foreign.deleted)
        print(f"somebody else wrote in the meantime: {', '.join(keys[:5])}", file=sys.stderr)
    if revision:
        print(f"written at revision {revision}")
    return revision


def _wait(store: "Store", release: str, revision: int, timeout: float) -> int:
    """Wait for the hosts and print each one's answer; return the exit code."""
    from tidegate.rollout.apply import answers
    from tidegate.rollout.fleet import KEYS, observe

    deadline = time.monotonic() + timeout
    printed: set[Answer] = set()
    while True:
        found = answers(observe(store.read(*KEYS)), release, revision)
        for answer in found:
            if answer.kind != "waiting" and answer not in printed:
                printed.add(answer)
                _print_answer(answer)
        late = [answer for answer in found if answer.kind == "waiting"]
        if not late or time.monotonic() >= deadline:
            break
        time.sleep(_POLL)
    for answer in late:
        print(f"{answer.host}: no answer within {timeout:g} s ({answer.reasons[0]})")
    bad = len(late) + sum(answer.kind == "nack" for answer in found)
    good = sum(answer.kind == "ack" for answer in found)
    if not found:
        print(f"no host follows the release {release} now")
    else:
        print(f"{good} of {len(found)} hosts acknowledge{f', {bad} do NOT' if bad else ''}")
    return UNACKNOWLEDGED if bad else 0


def _print_answer(answer: "Answer") -> None:
    if answer.kind == "ack":
        print(f"{answer.host}: in force", flush=True)
    elif answer.kind == "frozen":
        print(f"{answer.host}: frozen, keeps what it has: {answer.reasons[0]}", flush=True)
    else:
        print(f"{answer.host}: refuses", flush=True)
        for reason in answer.reasons:
            print(f"  {reason}", flush=True)
