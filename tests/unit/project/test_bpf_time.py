# SPDX-License-Identifier: Apache-2.0
"""Time in bpf/: a difference of two moments is taken in one place, which knows of CPUs behind."""

import re
from pathlib import Path

BPF = Path(__file__).parents[3] / "bpf"
KNOWS = {"clock.h", "limit.h"}
"""What takes differences: with a sign, or none where the other moment is later."""
_DIFFERENCE = re.compile(
    r"\b(now|tick|jiffies\w*|bpf_jiffies64\(\)|bpf_ktime_get_ns\(\))\s*-(?!>)"
    r"|-(?!>)\s*[\w>.\[\]-]*\b(at|seen|tick|then|spent|since|time)\b"
)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


def test_moments_are_compared_in_one_place() -> None:
    """Elsewhere another CPU's clock could make a moment ago look like ages, or a full bucket."""
    for source in sorted(BPF.glob("*.[ch]")):
        if source.name in KNOWS:
            continue
        code = _COMMENT.sub("", source.read_text())
        found = [line.strip() for line in code.splitlines() if _DIFFERENCE.search(line)]
        assert found == [], f"{source.name}: use passed() of clock.h, or a bucket of limit.h"


def test_a_difference_would_be_found() -> None:
    """Of each way that there was."""
    for line in ("u64 idle = now - flow->seen;", "passed = now - bucket->at;", "(tick - then)"):
        assert _DIFFERENCE.search(line)
    assert not _DIFFERENCE.search("take(limit, EVENT_RATE, now))")
    assert not _DIFFERENCE.search("plane->now;")
