# SPDX-License-Identifier: Apache-2.0
"""The trace that a command's writes belong to: `--traceparent`, else TRACEPARENT of the shell."""

import argparse
import os
import sys
from typing import Final

from tidegate.errors import ConfigError

_VARIABLE: Final = "TRACEPARENT"
_FORM: Final = "00-<32 hexadecimal digits>-<16>-<2>, in lower case and no id of zeros"


def add_option(command: argparse.ArgumentParser) -> None:
    """Add `--traceparent`."""
    command.add_argument(
        "--traceparent",
        metavar="TEXT",
        help="trace context (W3C) that is written into the documents, so that what the hosts do "
        f"with them becomes part of that trace (default: that of {_VARIABLE} in the environment)",
    )


def traceparent(options: argparse.Namespace) -> str | None:
    """Return the trace context to write, or None.

    Raises:
        ConfigError: the option is not a trace context. A variable that is not is left out, and a
            note says so.
    """
    from tidegate.model.traceparent import is_valid

    given: str | None = options.traceparent
    if given is not None:
        if not is_valid(given):
            raise ConfigError(f"--traceparent is {given!r}; it must be {_FORM}")
        return given
    found = os.environ.get(_VARIABLE)
    if found and not is_valid(found):
        print(f"note: {_VARIABLE} is left out: it is {found!r}, not {_FORM}", file=sys.stderr)
        return None
    return found or None
