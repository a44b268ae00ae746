# SPDX-License-Identifier: Apache-2.0
"""The times and endpoints of `tidegate history`, as an operator writes them."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from tidegate.model.values import Address

_AGO: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Endpoint(NamedTuple):
    """An address with a port."""

    address: "Address"
    port: int


def moment(text: str, now: datetime | None = None) -> datetime:
    """Return a time as an operator writes it.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    now = now or datetime.now(UTC)
    ago = re.fullmatch(r"(\d+)([smhd])", text)
    if ago:
        return now - timedelta(seconds=int(ago[1]) * _AGO[ago[2]])
    if re.fullmatch(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", text):
        text = f"{now:%Y-%m-%d}T{text:0>5}" if text.count(":") == 1 else f"{now:%Y-%m-%d}T{text}"
        found = _parsed(text)
        return found if found <= now else found - timedelta(days=1)
    return _parsed(text)


def _parsed(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time: write 12:03, 12:03:04, 2026-01-31T12:03:04Z or 2h"
        ) from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def endpoint(text: str) -> Endpoint:
    """Return an address with a port.

    Raises:
        argparse.ArgumentTypeError: it is not one.
    """
    host, _, port = text.rpartition(":")
    try:
        address, number = ip_address(host.removeprefix("[").removesuffix("]")), int(port)
        number.to_bytes(2)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an address with a port: write 192.0.2.10:443 or [2001:db8::1]:443"
        ) from error
    return Endpoint(address, number)
