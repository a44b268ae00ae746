# SPDX-License-Identifier: Apache-2.0
"""What all phases of the demo work with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tidegate.lab.control import StatusWatch
from tidegate.lab.rack import Lab
from tidegate.lab.roster import Roster


@dataclass
class Stage:
    """A lab with an agent, what is written in etcd, and a receiver of progress lines.

    Attributes:
        lab: it is up.
        roster: the documents.
        status: of the LB host lb1.
        report: takes each line of progress.
        began: when the demo began, CLOCK_MONOTONIC seconds.
    """

    lab: Lab
    roster: Roster
    status: StatusWatch
    report: Callable[[str], None]
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Report a line of progress with the time since the beginning."""
        self.report(f"{time.monotonic() - self.began:5.1f} s  {text}")

    def resets_sent(self) -> int:
        """Return the number of RSTs that the kernels of all backends have sent.

        A packet of a connection that reaches the wrong backend is answered with one.
        """
        return sum(self.lab.tcp_counter(node.name, "OutRsts") for node in self.lab.backends())
