# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test folders share, and the table of what failures did."""

from collections.abc import Iterator

import pytest

from support.etcd.server import EtcdServer

_MEASURED = "health"
_HEAD = ("failure", "found after", "moved after", "its TCP", "its UDP", "all others", "back after")


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    """Give a real etcd of the test's own, which the test may freeze, kill and wipe."""
    with EtcdServer() as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have measured of failures (`record_property`), in one table."""
    rows = [
        tuple(map(str, value))
        for report in terminalreporter.stats.get("passed", [])
        for name, value in getattr(report, "user_properties", ())
        if name == _MEASURED and report.when == "call"
    ]
    if not rows:
        return
    terminalreporter.section("failures, as observed")
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    for row in (_HEAD, tuple("-" * width for width in widths), *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line(f"| {' | '.join(cells)} |")
