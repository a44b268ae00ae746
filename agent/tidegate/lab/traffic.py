# SPDX-License-Identifier: Apache-2.0
"""Load from both clients as one thing: started together, watched together, summed up.

The clients' processes do the work (`load`); here their lines are read and added.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tidegate.errors import LabError
from tidegate.lab.load import Totals
from tidegate.lab.rack import Lab


@dataclass(frozen=True, slots=True)
class Trouble:
    """A connection that went wrong.

    Attributes:
        how: failed, reset or moved.
        why: the client's error.
        kind: short or download.
        began: when the connection was begun, CLOCK_MONOTONIC seconds.
        at: when it went wrong.
        stage: connect, first, dwell, second or download.
        backend: who answered on it before; None if nobody had.
    """

    client: str
    how: str
    why: str
    target: str
    kind: str
    began: float
    at: float
    stage: str
    backend: str | None


class Traffic:
    """The load of both clients; a context manager that ends it on the way out.

    Args:
        lab: on whose clients it runs.
        targets: `address:port`, IPv6 in brackets.
        rate: new short connections a second, of both clients together.
        dwell: mean seconds between the two requests of a short connection.
        downloads: to keep open, per client and target.
        seconds: after which it ends by itself.
    """

    def __init__(
        self,
        lab: Lab,
        targets: Sequence[str],
        *,
        rate: float,
        dwell: float = 0,
        downloads: int = 0,
        seconds: float = 300,
    ) -> None:
        self.troubles: list[Trouble] = []
        self._latest: dict[str, Totals] = {}
        self._reports: dict[str, Totals] = {}
        self._changed = threading.Condition()
        self._children: dict[str, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []
        command = [sys.executable, "-m", "tidegate.lab.load"]
        command += [word for target in targets for word in ("--target", target)]
        command += ["--rate", f"{rate / 2:g}", "--dwell", f"{dwell:g}"]
        command += ["--downloads", str(downloads), "--seconds", f"{seconds:g}"]
        for seed in (1, 2):
            client = lab.client(seed)
            child = client.popen(
                [*command, "--seed", str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            thread = threading.Thread(target=self._read, args=(client.name, child), daemon=True)
            thread.start()
            self._children[client.name] = child
            self._threads.append(thread)

    def _read(self, client: str, child: "subprocess.Popen[str]") -> None:
        assert child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        for line in child.stdout:
            values = json.loads(line)
            event = values.pop("event")
            at = values.pop("t")
            with self._changed:
                if event == "trouble":
                    self.troubles.append(Trouble(client=client, at=at, **values))
                else:
                    self._latest[client] = Totals(**values)
                    if event == "report":
                        self._reports[client] = self._latest[client]
                self._changed.notify_all()

    def totals(self) -> Totals:
        """Return the sum of the clients' last reports, at most half a second old."""
        with self._changed:
            return _sum(list(self._latest.values()))

    def wait(self, reached: Callable[[Totals], bool], timeout: float, what: str) -> Totals:
        """Return when the totals satisfy a condition.

        Raises:
            LabError: they do not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not reached(_sum(list(self._latest.values()))):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise LabError(
                        f"the load did not reach {what} within {timeout:g} s; it has "
                        f"{_sum(list(self._latest.values()))}, first troubles: {self.troubles[:3]}"
                    )
            return _sum(list(self._latest.values()))

    def finish(self, timeout: float = 30) -> Totals:
        """Tell the clients to stop, let them end what is open, and return the final sum.

        Raises:
            LabError: a client's process ended without a report.
        """
        for child in self._children.values():
            if child.poll() is None and child.stdin is not None:
                with suppress(BrokenPipeError):  # it ended meanwhile, which is found below
                    child.stdin.write("stop\n")
                    child.stdin.flush()
        return self.finish_by_itself(timeout)

    def finish_by_itself(self, timeout: float) -> Totals:
        """Wait until the clients' time is over, and return the final sum.

        Raises:
            LabError: a client's process ended without a report, or did not end.
        """
        for thread in self._threads:
            thread.join(timeout)
        missing = self._children.keys() - self._reports.keys()
        if missing:
            raise LabError(f"the load on {', '.join(sorted(missing))} gave no report")
        return _sum(list(self._reports.values()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()
        for thread in self._threads:
            thread.join()
        for child in self._children.values():
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()


def _sum(parts: list[Totals]) -> Totals:
    result = Totals()
    for part in parts:
        for name, value in vars(part).items():
            if name != "shares":
                setattr(result, name, getattr(result, name) + value)
        for target, share in part.shares.items():
            mine = result.shares.setdefault(target, {})
            for backend, count in share.items():
                mine[backend] = mine.get(backend, 0) + count
    return result
