# SPDX-License-Identifier: Apache-2.0
"""A real etcd process for tests: random loopback ports, its data in a temporary folder.

It signals its own process only. Importable from tests as `etcd_server`.
"""

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago.

    It is below the range that outgoing connections get theirs from (ip_local_port_range), since one
    of those could take it before a server does.
    """
    while True:
        port = random.randint(20000, 32000)  # noqa: S311 - no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class EtcdServer:
    """One etcd member. As a context manager it is running inside, and gone after.

    Attributes:
        endpoint: host:port for clients; the same after a restart.
        extra: more arguments for etcd; of two that contradict each other, etcd takes the last.
        name: of the member.
        peer: URL for other members.
        data: folder of the data.
        folder: of programs, with etcd and etcdctl in it; Debian's by default.
    """

    def __init__(
        self, *extra: str, scheme: str = "http", name: str = "t", folder: str = "/usr/bin"
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tidegate-etcd-"))
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.extra = list(extra)
        self.name = name
        self.peer = f"http://127.0.0.1:{free_port()}"
        self.data = self._folder / "data"
        self.folder = folder
        self._scheme = scheme
        self._metrics = f"127.0.0.1:{free_port()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the running etcd."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: float = 15.0) -> None:
        """Start etcd and wait up to `wait` seconds until it says that it is healthy."""
        self.launch()
        self.wait_until_healthy(wait)

    def launch(self) -> None:
        """Start etcd, and do not wait for it: a member is not healthy before most of them are."""
        assert self._process is None, "etcd is running"
        client = f"{self._scheme}://{self.endpoint}"
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    f"{self.folder}/etcd",
                    *("--name", self.name, "--data-dir", str(self.data)),
                    *("--listen-client-urls", client, "--advertise-client-urls", client),
                    *("--listen-peer-urls", self.peer),
                    *("--initial-advertise-peer-urls", self.peer),
                    *("--initial-cluster", f"{self.name}={self.peer}"),
                    *("--listen-metrics-urls", f"http://{self._metrics}"),
                    # One member needs no time to find a leader; the default is a second.
                    *("--heartbeat-interval", "10", "--election-timeout", "100"),
                    *("--logger", "zap", "--log-level", "warn"),
                    *self.extra,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_healthy(self, wait: float = 15.0) -> None:
        """Wait up to `wait` seconds until etcd says that it is healthy."""
        deadline = time.monotonic() + wait
        while not self._healthy():
            assert self._process is not None, "etcd is not running"
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"etcd did not get healthy:\n{self.log()}")
            time.sleep(0.02)  # its health endpoint can only be asked again

    def kill(self) -> None:
        """End etcd with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """Freeze etcd with SIGSTOP: its sockets stay open, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen etcd go on."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Kill etcd and start it again with the same ports and data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Delete the data of an etcd that is not running."""
        assert self._process is None, "etcd is running"
        shutil.rmtree(self.data)

    def close(self) -> None:
        """Kill etcd and delete its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ctl(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run etcdctl against this server and return what it printed."""
        done = subprocess.run(
            [f"{self.folder}/etcdctl", f"--endpoints={self._scheme}://{self.endpoint}", *arguments],
            env={**os.environ, "ETCDCTL_API": "3"},
            input=stdin,
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def log(self) -> str:
        """Return the end of etcd's log."""
        return (self._folder / "log").read_text("utf-8", "replace")[-4000:]

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(self._metrics, timeout=1)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        except OSError:
            return False
        finally:
            connection.close()


T = TypeVar("T")


class Received(Generic[T]):
    """A callback that keeps what it gets, and lets a test wait for it."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self._changed = threading.Condition()

    def __call__(self, item: T) -> None:
        """Keep an item."""
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait(self, wanted: Callable[[T], bool], timeout: float = 10.0) -> T:
        """Return the first item so far or to come that is wanted; fail after `timeout` seconds."""
        seen = 0
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for item in self.items[seen:]:
                    if wanted(item):
                        return item
                seen = len(self.items)
                left = deadline - time.monotonic()
                assert left > 0, f"not received within {timeout} s; last were {self.items[-3:]}"
                self._changed.wait(left)
