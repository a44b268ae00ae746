# SPDX-License-Identifier: Apache-2.0
"""Spans of time as options of commands."""

import argparse
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str) -> int:
    """Return seconds of `90`, `90s`, `10m`, `2h` or `1d`; an argparse type."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    if not (number.isascii() and number.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90s, 10m or 2h")
    return int(number) * unit
