# SPDX-License-Identifier: Apache-2.0
"""The tables that are printed: rows beside their goals, the floor, the prices, and the machine."""

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.dataplane import live
from bench.dataplane.method import Figure
from bench.dataplane.prices import FLOOR, PRICES
from bench.dataplane.rows import Row
from bench.dataplane.stage import VERSIONS

_WIDTH = 38


def machine() -> dict[str, str]:
    """Return what figures depend on: CPU, kernel, number of CPUs."""
    text = Path("/proc/cpuinfo").read_text()
    facts = dict(
        (part.strip() for part in line.split(":", 1))
        for line in text.split("\n\n")[0].splitlines()
        if ":" in line
    )
    names = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    return {
        "cpu": ", ".join(facts[name] for name in names if name in facts),
        "kernel": platform.release(),
        "cpus": str(os.cpu_count()),
    }


def rows(wanted: Iterable[Row], figures: Mapping[str, Figure]) -> list[str]:
    """Return a line for each row, with a column for each version of the program."""
    heads = "".join(f"{version:>8} {'(range)':>12} {'goal':>6} " for version in VERSIONS)
    lines = [f"{'ns a packet':{_WIDTH}}{heads}"]
    for row in wanted:
        cells = (
            _cell(figures[f"{row.name} / {version}"], goal)
            for version, goal in zip(VERSIONS, (row.goal, row.goal_all), strict=True)
        )
        lines.append(f"{row.name:{_WIDTH}}{''.join(cells)}")
    return lines


def prices(figures: Mapping[str, Figure]) -> list[str]:
    """Return the price list, and what no program that encapsulates can do without."""
    return ["ns", *(f"{name:{_WIDTH}}{_cell(figures[name], None)}" for name in (*PRICES, FLOOR))]


def live_rows(figures: Mapping[str, Figure]) -> list[str]:
    """Return the live rows, in millions of packets a second."""
    lines = ["Mpps"]
    for row in live.ROWS:
        for version in VERSIONS:
            name = f"{row.name} / {version}"
            lines.append(f"{name:{_WIDTH + 8}}{_rate(figures[name], row.goal)}")
    return [*lines, f"{live.FLOOR:{_WIDTH + 8}}{_rate(figures[live.FLOOR], None)}"]


def _cell(figure: Figure, goal: float | None) -> str:
    mark = " " if figure.is_clean else "~"
    spread = f"({figure.low:.1f}-{figure.high:.1f})"
    return f"{figure.median:7.1f}{mark} {spread:>14} {_goal(figure.median, goal, '≤')} "


def _rate(figure: Figure, goal: float | None) -> str:
    mark = " " if figure.is_clean else "~"
    most, least, median = (1e3 / ns for ns in (figure.low, figure.high, figure.median))
    reached = None if goal is None else -goal
    spread = f"({least:.2f}-{most:.2f})"
    return f"{median:6.2f}{mark} {spread:>14} {_goal(-median, reached, '≥')}"


def _goal(value: float, goal: float | None, sign: str) -> str:
    if goal is None:
        return f"{'':6}"
    return f"{sign}{abs(goal):<3g}{' ' if value <= goal else '!'} "
