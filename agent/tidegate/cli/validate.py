# SPDX-License-Identifier: Apache-2.0
"""`tidegate validate`: everything that is wrong with files of documents, without etcd or root.

Only arguments and printing: `keyspace/documents/files.py` reads and checks. `add_files` and `show`
are for the other commands that take documents.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from argparse import _SubParsersAction
    from collections.abc import Iterable

    from tidegate.keyspace.documents.files import Documents, Fault

REFUSED: Final = 3
"""Exit code of a command whose documents are refused."""

FILES: Final = """\
FILE is a JSON or YAML object from key relative to the release to document:

  {"pools/web": {},
   "pools/web/backends/b1": {"address": "198.51.100.7"},
   "vips/www": {"address": "192.0.2.10", "port": 80, "protocol": "tcp", "pool": "web"}}

DIR is all .json, .yaml and .yml files below it. Those at its top are such objects; those further
down are one document each, whose key is the path (pools/web/backends/b1.yaml), and so is
settings.yaml at the top. All together are one release. - is standard input.
"""
_ABOUT: Final = f"""\
Check documents as an agent does, and list every fault with its file, line, key and field. This
needs no etcd and no root.

{FILES}"""
_EPILOG: Final = """\
exit codes: 0 all are good; 2 a file cannot be read; 3 something is refused

examples:
  tidegate validate -f release/
  tidegate validate -f pools.yaml -f vips.yaml --json | jq .faults
  git show HEAD:release.json | tidegate validate -f -
"""


def register(subparsers: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `validate` to the command line."""
    command = subparsers.add_parser(
        "validate",
        help="check files of documents",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_files(command)
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(run=_run)


def add_files(command: argparse.ArgumentParser) -> None:
    """Add the option that names files of documents."""
    command.add_argument(
        "-f",
        "--file",
        dest="files",
        action="append",
        required=True,
        metavar="FILE|DIR",
        help="documents; may be given several times",
    )


def show(faults: "Iterable[Fault]", documents: "Documents") -> None:
    """List faults for people."""
    for fault in faults:
        print(fault)
    for name in documents.ignored:
        print(f"{name}: not read: only .json, .yaml and .yml are documents", file=sys.stderr)


def as_json(faults: "Iterable[Fault]", documents: "Documents") -> dict[str, object]:
    """Return the same for programs."""
    return {
        "documents": len(documents.values),
        "faults": [fault._asdict() for fault in faults],
        "not_read": documents.ignored,
    }


def _run(options: argparse.Namespace) -> int:
    from tidegate.keyspace.documents import files

    documents = files.read(options.files)
    faults = documents.check().faults
    if options.json:
        print(json.dumps(as_json(faults, documents), indent=2))
        return REFUSED if faults else 0
    show(faults, documents)
    count = len(documents.values)
    if faults:
        print(f"{counted(count, 'document')}, {counted(len(faults), 'fault')}")
    else:
        print(f"{counted(count, 'document')} {'is' if count == 1 else 'are'} good")
    return REFUSED if faults else 0


def counted(count: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
