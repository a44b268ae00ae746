# SPDX-License-Identifier: Apache-2.0
"""One raw watch stream: open it, read it, and notice when it has gone silent.

A thread of its own blocks on gRPC, so that the caller can wait for a message and for the time at
once. It knows messages, not documents: `Watch` decides what they mean.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc

from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy, from_rpc
from tidegate.keyspace.paths import KeyRange

_BACKLOG: Final = 256
_BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""Unread messages, and bytes of them, that are kept here; beyond them gRPC's flow control holds
etcd back. One message may be longer."""


class WatchStream:
    """A watch on ranges of keys from a revision on. Used by one thread; `cancel` is for any.

    Each range has a watcher. The events of one arrive in order; between several there is no order.

    Attributes:
        silent: whether it was given up for silence.
    """

    def __init__(
        self,
        etcd: Etcd,
        ranges: Sequence[KeyRange],
        start: int,
        *,
        idle_probe: float,
        silence_limit: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the stream. Times are seconds.

        Raises:
            CallFailed: the login that comes first failed.
        """
        self.silent = False
        self._etcd = etcd
        self._idle_probe = idle_probe
        self._silence_limit = silence_limit
        self._clock = clock
        self._heard = self._probed = clock()
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.Queue[Any] = queue.Queue(_BACKLOG)
        self._unread_bytes = 0
        self._room = threading.Condition()
        self._closed = threading.Event()
        self._failure: CallFailed | None = None
        for each in ranges:
            create = etcd.messages.WatchCreateRequest(
                key=each.key,
                range_end=each.end,
                start_revision=start,
                progress_notify=True,
                fragment=True,  # without it a large transaction exceeds gRPC's message limit
            )
            self._requests.put(etcd.messages.WatchRequest(create_request=create))
        self._call = etcd.watch(iter(self._requests.get, None))
        threading.Thread(target=self._read, name="tidegate-watch-reader", daemon=True).start()

    def batch(self, until: float) -> list[Any]:
        """Return the messages that have arrived, waiting for the first; none if `until` comes.

        Asks etcd for progress when the stream is idle, and gives up when no answer comes.

        Args:
            until: second of the clock.

        Raises:
            CallFailed: the stream has ended, and every message before its end was returned.
        """
        while True:
            now = self._clock()
            idle = now - self._heard
            if idle >= self._silence_limit:
                self.silent = True
                self.cancel()
                raise CallFailed(
                    Remedy.RELIST, f"etcd has been silent for {idle:.1f} s on an open watch"
                )
            if now >= until:
                return []
            if now >= max(self._heard, self._probed) + self._idle_probe:
                self._probed = now
                probe = self._etcd.messages.WatchProgressRequest()
                self._requests.put(self._etcd.messages.WatchRequest(progress_request=probe))
            wait = min(
                until - now,
                self._silence_limit - idle,
                max(self._heard, self._probed) + self._idle_probe - now,
            )
            messages = self._drain(wait)
            if messages:
                self._heard = self._clock()
                self._etcd.heard()
                return messages

    def cancel(self) -> None:
        """End the stream; may be repeated."""
        self._closed.set()
        self._requests.put(None)  # ends the iterator that gRPC's sender waits on
        self._call.cancel()

    def _drain(self, wait: float) -> list[Any]:
        """Take what is there, after waiting up to `wait` seconds for the first message."""
        messages: list[Any] = []
        try:
            message = self._answers.get(timeout=max(wait, 0.0))
            while message is not None:
                messages.append(message)
                self._count(-message.ByteSize())
                message = self._answers.get_nowait()
        except queue.Empty:
            return messages
        if not messages:
            raise self._failure or CallFailed(Remedy.RETRY, "etcd ended the watch")
        self._answers.put(None)  # seen again by the next call; there is room: we just took from it
        return messages

    def _read(self) -> None:
        try:
            for message in self._call:
                size = message.ByteSize()
                self._await_room(size)
                self._count(size)
                if not self._queue_message(message):
                    return
        except grpc.RpcError as error:
            self._failure = from_rpc(error, "follow a watch", has_user=self._etcd.has_user)
        finally:
            self._requests.put(None)
            self._queue_message(None)

    def _count(self, size: int) -> None:
        with self._room:
            self._unread_bytes += size
            self._room.notify()

    def _await_room(self, size: int) -> None:
        """Wait until so many bytes fit what is kept, or nothing is, or nobody reads any more."""
        with self._room:
            while self._unread_bytes and self._unread_bytes + size > _BACKLOG_BYTES:
                if self._closed.is_set():
                    return
                self._room.wait(0.5)

    def _queue_message(self, message: Any) -> bool:  # noqa: ANN401 - a run-time message class, or None
        """Queue a message; give up once the stream was cancelled, since nobody reads then."""
        while True:
            try:
                self._answers.put(message, timeout=0.5)
            except queue.Full:
                if self._closed.is_set():
                    return False
            else:
                return True
