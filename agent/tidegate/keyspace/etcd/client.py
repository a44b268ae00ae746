# SPDX-License-Identifier: Apache-2.0
"""A connection to etcd: channel options, TLS, login, and the few calls that Tidegate makes.

Every call has a deadline and asks for a leader, so a member that lost its quorum answers with an
error and not with old data. Nothing here retries, apart from one new login when a token is not
accepted; `Watch` and `StatusWriter` decide that. Making an `Etcd` sends nothing: etcd may be away.

Of etcd3 this uses the channel, the stubs and the messages. Its own watch never resumes, its tokens
are never renewed, and its prefix reads ignore revision and limit.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import grpc

from tidegate.errors import ConfigError
from tidegate.keyspace.etcd.etcd3_loader import load
from tidegate.keyspace.etcd.failures import CallFailed, Remedy, from_rpc
from tidegate.keyspace.etcd.settings import EtcdSettings, check, targets
from tidegate.keyspace.etcd.transaction import Write

T = TypeVar("T")

Message: TypeAlias = Any
"""A protobuf message, or another object of etcd3 or grpc; neither is typed."""

_MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one answer: ten of the longest values that etcd takes. Longer reads are in pages."""

_OPTIONS: Final = (
    # A peer that froze or vanished is found in keepalive + ping timeout; below 5 s etcd answers
    # GOAWAY (too many pings). grpc.keepalive_timeout_ms has no effect in this gRPC.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    # Channels with equal arguments would share connections, and a rebuilt one its frozen peer.
    ("grpc.use_local_subchannel_pool", 1),
)


class Etcd:
    """One connection to etcd, used by one thread; `close` may be called from another.

    Every method that calls etcd raises CallFailed.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        """Prepare a connection; nothing is sent yet.

        Raises:
            ConfigError: the settings contradict each other or name a file that cannot be read.
        """
        check(settings)
        self._settings = settings
        self.messages = load().etcdrpc
        self.last_contact = time.monotonic()
        """Monotonic second of etcd's last answer, at first that of the start."""
        self._targets = targets(settings)
        self._turn = 0
        self._lock = threading.Lock()
        self._closed = False
        self._token: str | None = None
        self._client = self._open()

    def __repr__(self) -> str:
        return f"Etcd({', '.join(self._settings.endpoints)})"

    @property
    def has_user(self) -> bool:
        """Whether there is a user to log in as."""
        return self._settings.user is not None

    def heard(self) -> None:
        """Note that etcd has just answered."""
        self.last_contact = time.monotonic()

    def range(self, key: bytes, end: bytes = b"", *, revision: int = 0, limit: int = 0) -> Message:
        """Read a key, or the keys from `key` to before `end`; linearizable."""
        request = self.messages.RangeRequest(key=key, range_end=end, revision=revision, limit=limit)
        return self._unary("read the keyspace", lambda client: client.kvstub.Range, request)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Write a key, under a lease unless that is 0."""
        request = self.messages.PutRequest(key=key, value=value, lease=lease)
        self._unary(f"write {key.decode()}", lambda client: client.kvstub.Put, request)

    def replace(
        self, values: Mapping[str, bytes | None], lease: int, held: str, revision: int
    ) -> int | None:
        """Write keys under a lease, or delete them (None), in one transaction.

        Args:
            values: by key, whatever is there.
            lease: they live under it.
            held: a key that must be as it was left, or nothing is written.
            revision: its modification revision; 0 if it must not exist.

        Returns:
            The revision of the writes, or None if the key is not so.
        """
        messages = self.messages
        compare = messages.Compare(
            key=held.encode(),
            target=messages.Compare.MOD,
            result=messages.Compare.EQUAL,
            mod_revision=revision,
        )
        operations = [
            messages.RequestOp(request_delete_range=messages.DeleteRangeRequest(key=key.encode()))
            if value is None
            else messages.RequestOp(
                request_put=messages.PutRequest(key=key.encode(), value=value, lease=lease)
            )
            for key, value in values.items()
        ]
        request = messages.TxnRequest(compare=[compare], success=operations)
        named = ", ".join([*values][:3])
        answer = self._unary(f"write {named}", lambda client: client.kvstub.Txn, request)
        return int(answer.header.revision) if answer.succeeded else None

    def commit(self, writes: Sequence[Write]) -> Message:
        """Make all writes if every key is as expected; else read the keys. One transaction."""
        messages = self.messages
        compares, success, failure = [], [], []
        for write in writes:
            key = write.key.encode()
            compares.append(
                messages.Compare(
                    key=key,
                    target=messages.Compare.MOD,
                    result=messages.Compare.EQUAL,
                    mod_revision=write.expected,
                )
            )
            failure.append(messages.RequestOp(request_range=messages.RangeRequest(key=key)))
            if write.value is None:
                delete = messages.DeleteRangeRequest(key=key)
                success.append(messages.RequestOp(request_delete_range=delete))
            else:
                put = messages.PutRequest(key=key, value=write.value)
                success.append(messages.RequestOp(request_put=put))
        request = messages.TxnRequest(compare=compares, success=success, failure=failure)
        return self._unary(
            f"write {', '.join(write.key for write in writes[:3])}",
            lambda client: client.kvstub.Txn,
            request,
        )

    def grant(self, ttl: int) -> int:
        """Get a lease of `ttl` seconds and return its id."""
        request = self.messages.LeaseGrantRequest(TTL=ttl)
        answer = self._unary("get a lease", lambda client: client.leasestub.LeaseGrant, request)
        return int(answer.ID)

    def keep_alive(self, lease: int) -> None:
        """Renew a lease; the remedy is RELIST when etcd does not know it any more."""
        request = self.messages.LeaseKeepAliveRequest(ID=lease)

        def first(client: Message) -> Callable[..., Any]:
            return lambda request, **options: next(
                client.leasestub.LeaseKeepAlive(iter((request,)), **options)
            )

        answer = self._unary("renew a lease", first, request)
        if answer.TTL <= 0:
            raise CallFailed(Remedy.RELIST, "the lease of the status key has expired")

    def revoke(self, lease: int, timeout: float) -> None:
        """Give a lease back, which deletes its keys."""
        request = self.messages.LeaseRevokeRequest(ID=lease)
        self._unary(
            "give back a lease", lambda client: client.leasestub.LeaseRevoke, request, timeout
        )

    def watch(self, requests: Iterator[Message]) -> Message:
        """Open a watch stream: an iterable of WatchResponse that has `cancel()`; no deadline."""
        stub = self._guarded("open a watch", lambda: self.messages.WatchStub(self._client.channel))
        if self.has_user and self._token is None:
            self.login()
        return self._guarded(
            "open a watch", lambda: stub.Watch(requests, metadata=self._metadata())
        )

    def login(self) -> None:
        """Get a token for the user; without authentication in etcd, go on without one."""
        request = self.messages.AuthenticateRequest(
            name=self._settings.user, password=self._password()
        )
        try:
            answer = self._guarded(
                f"log in as {self._settings.user}",
                lambda: self.messages.AuthStub(self._client.channel).Authenticate(
                    request, timeout=self._settings.call_timeout
                ),
            )
        except CallFailed as failure:
            if "authentication is not enabled" not in failure.reason:
                raise
            self._token = ""  # etcd asks with "user name is empty" once it is enabled
        else:
            self._token = answer.token
        self.heard()

    def rebuild(self) -> None:
        """Open a new channel, to the next endpoint if there is a list of them; keeps the token.

        Raises:
            ConfigError: a TLS file cannot be read now; the old channel stays in use.
        """
        self._turn += 1
        fresh = self._open()
        with self._lock:
            old, self._client = self._client, fresh
            if self._closed:
                fresh.close()
        old.close()

    def close(self) -> None:
        """Close the channel; calls under way end with an error. For any thread; may be repeated."""
        with self._lock:
            self._closed = True
            self._client.close()

    def _open(self) -> Message:
        settings = self._settings
        target = self._targets[self._turn % len(self._targets)]
        options: list[tuple[str, int | str]] = list(_OPTIONS)
        if settings.server_name is not None:
            options.append(("grpc.ssl_target_name_override", settings.server_name))
        elif "," in target:
            # A list of addresses is no host name; gRPC would send it as one.
            options.append(("grpc.default_authority", settings.endpoints[0]))
        host, _, port = target.rpartition(":")
        try:
            # No user here: etcd3 would log in at once, block, and never renew its token.
            return load().client(
                host=host,
                port=port,
                ca_cert=settings.ca,
                cert_cert=settings.cert,
                cert_key=settings.key,
                timeout=settings.call_timeout,
                grpc_options=options,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot read a file of etcd.ca, etcd.cert or etcd.key: {error}"
            ) from error

    def _password(self) -> str:
        try:
            return Path(self._settings.password_file or "").read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise CallFailed(Remedy.OPERATOR, f"cannot read etcd.password_file: {error}") from error

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        leader = ("hasleader", "true")
        return (leader, ("token", self._token)) if self._token else (leader,)

    def _unary(
        self,
        action: str,
        pick: Callable[[Any], Callable[..., T]],
        request: Message,
        timeout: float | None = None,
    ) -> T:
        """Make one call; log in first if that is due, and once more if the token is refused."""
        if self.has_user and self._token is None:
            self.login()

        def attempt() -> T:
            call = pick(self._client)
            deadline = timeout or self._settings.call_timeout
            return call(request, timeout=deadline, metadata=self._metadata())

        try:
            answer = self._guarded(action, attempt)
        except CallFailed as failure:
            if failure.remedy is not Remedy.LOGIN:
                raise
            self.login()
            answer = self._guarded(action, attempt)
        self.heard()
        return answer

    def _guarded(self, action: str, call: Callable[[], T]) -> T:
        """Run a gRPC call and turn what it raises into CallFailed."""
        try:
            return call()
        except grpc.RpcError as error:
            raise from_rpc(error, action, has_user=self.has_user) from error
        except StopIteration as error:
            raise CallFailed(Remedy.RETRY, f"etcd ended the call to {action}") from error
        except ValueError as error:
            # gRPC's answer to a call on a channel that was closed meanwhile.
            raise CallFailed(Remedy.RETRY, f"could not {action}: {error}") from error
