# SPDX-License-Identifier: Apache-2.0
"""The specification of the data plane: the packet decisions of bpf/ in plain Python.

It is slow and clear. Same maps and same frame give the same verdict, frame, map changes and
counters; the conformance suite holds the two byte-equal. A decision is changed here first.
"""

from tidegate.spec.balancer import Result, Verdict, process
from tidegate.spec.state import Link, Settings, State

__all__ = ["Link", "Result", "Settings", "State", "Verdict", "process"]
