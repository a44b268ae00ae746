# SPDX-License-Identifier: Apache-2.0
"""The control system of the demo: plain `etcdctl put` and `del`, and a watch of a host's status.

It uses what any control system can: documents in, status out.
"""

import base64
import json
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from tidegate.errors import LabError
from tidegate.keyspace import paths
from tidegate.lab.agents import FLEET, RELEASE, ROOT
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

_MALFORMED = "etcdctl said something that is not its JSON"


class Written(NamedTuple):
    """A change of a key: its revision, and CLOCK_MONOTONIC seconds around the run of etcdctl."""

    revision: int
    began: float
    ended: float


class Control:
    """Writes documents of the live release with etcdctl on the control node."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._prefix = paths.release_prefix(ROOT, FLEET, RELEASE)

    def put(self, key: str, document: Mapping[str, Any]) -> Written:
        """Write one document; the key is relative to the release.

        Raises:
            LabError: etcdctl failed.
        """
        return self._run("put", self._prefix + key, json.dumps(document))

    def delete(self, key: str) -> Written:
        """Delete one document.

        Raises:
            LabError: etcdctl failed.
        """
        return self._run("del", self._prefix + key)

    def _run(self, *arguments: str) -> Written:
        began = time.monotonic()
        answer = self._lab.etcdctl("-w", "json", *arguments)
        ended = time.monotonic()
        try:
            return Written(int(json.loads(answer)["header"]["revision"]), began, ended)
        except (ValueError, KeyError) as error:
            raise LabError(f"{_MALFORMED}: {answer!r}") from error


class Seen(NamedTuple):
    """A status document and when it was seen, in CLOCK_MONOTONIC seconds."""

    status: dict[str, Any]
    at: float


class StatusWatch:
    """Follows a host's status key through `etcdctl watch`; a context manager."""

    def __init__(self, lab: Lab, host: str) -> None:
        self.latest: Seen | None = None
        self._host = host
        self._queue: queue.Queue[Seen] = queue.Queue()
        key = paths.status_key(ROOT, FLEET, host)
        # From revision 1, so that nothing written before the watch stands is missed.
        self._child = lab.node(CONTROL).popen(
            ["etcdctl", "-w", "json", "watch", "--rev=1", key], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._child.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        for line in self._child.stdout:
            now = time.monotonic()
            for event in json.loads(line).get("Events") or ():
                if event.get("type", 0) == 0:  # a put; a deletion is an expired lease
                    status = json.loads(base64.b64decode(event["kv"]["value"]))
                    self._queue.put(Seen(status, now))

    def current(self) -> dict[str, Any]:
        """Return the latest status that was waited for.

        Raises:
            LabError: there was none yet.
        """
        if self.latest is None:
            raise LabError(f"{self._host} has not reported anything yet")
        return self.latest.status

    def wait(
        self, what: str, accept: Callable[[dict[str, Any]], bool], timeout: float = 30
    ) -> Seen:
        """Return the first status from here on, the latest included, that is accepted.

        Raises:
            LabError: none within `timeout` seconds; the text has the latest.
        """
        deadline = time.monotonic() + timeout
        while self.latest is None or not accept(self.latest.status):
            try:
                self.latest = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty as error:
                raise LabError(
                    f"{self._host} did not report {what} within {timeout:g} s; its last status: "
                    f"{json.dumps(self.latest.status) if self.latest else 'none'}"
                ) from error
        return self.latest

    def wait_applied(self, revision: int, timeout: float = 30) -> Seen:
        """Return the status that says that a revision is in force.

        Raises:
            LabError: the host refuses something, or does not apply it in time.
        """
        seen = self.wait(
            f"revision {revision}",
            lambda status: status["generation_revision"] >= revision or bool(status["refusals"]),
            timeout,
        )
        if seen.status["refusals"]:
            raise LabError(f"{self._host} refuses: {json.dumps(seen.status['refusals'])}")
        return seen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        self._thread.join()
        if self._child.stdout is not None:
            self._child.stdout.close()
