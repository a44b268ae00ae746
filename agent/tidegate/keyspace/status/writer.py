# SPDX-License-Identifier: Apache-2.0
"""Write a host's status and verdicts to etcd under a lease, on a thread of its own.

`submit` and `submit_verdicts` never block and never fail; only what was given last counts. The
lease makes the keys disappear when the host dies. If the lease was lost (etcd did not answer for
longer than its time, or was wiped), all is written again under a new one. A lease is not renewed
while etcd refuses what is new: a status that cannot follow its host must go, not lie. Nor is it
while whoever submits hangs. Whose name it is, is decided in `claim`; the content elsewhere.

With each renewal, and at once after anything failed, the host confirms its verdicts (`verdicts`):
after all that is new was written, so whoever reads a confirmation has read no older ones. What
somebody else wrote over them, or deleted, is put right (`own_keys`).
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Final

from tidegate.event_log import EventLog
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy
from tidegate.keyspace.etcd.retry import until_done
from tidegate.keyspace.etcd.settings import EtcdSettings
from tidegate.keyspace.status import verdicts
from tidegate.keyspace.status.claim import Claim
from tidegate.keyspace.status.document import StatusDocument, encode
from tidegate.keyspace.status.own_keys import OwnKeys, OwnKeyWatch
from tidegate.keyspace.status.verdicts import Confirmation

log = EventLog(__name__)

_MIN_INTERVAL: Final = 0.25
"""Seconds between two writes: four a second at most."""

_BATCH: Final = 100
"""Keys in one transaction; etcd takes 128 operations."""

_LOOKS: Final = 10
"""So often in the time of a lease it is looked whether whoever hangs goes on."""

_GONE_AGAIN: Final = frozenset({Remedy.RETRY, Remedy.LOGIN})


class StatusWriter:
    """Keeps a host's keys equal to what was given last, from `start` to `stop`."""

    def __init__(
        self,
        settings: EtcdSettings,
        key: str,
        on_error: Callable[[str], None] = lambda _reason: None,
        on_written: Callable[[StatusDocument], None] = lambda _status: None,
        hang: Callable[[], str] = lambda: "",
        confirmation: str = "",
    ) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            settings: where etcd is, and the lease's time.
            key: the status key, as `paths.status_key` gives it.
            on_error: gets the reason when writing fails, and an empty text when it works again; on
                the writer's thread.
            on_written: gets each status that etcd has taken, on the writer's thread.
            hang: why nothing is renewed, as whoever submits does not go on; empty if it does.
            confirmation: key of the confirmation of verdicts; empty writes none.

        Raises:
            ConfigError: the settings cannot be used.
        """
        self._settings = settings
        self._key = key
        self._on_error = on_error
        self._on_written = on_written
        self._hang = hang
        self._status: StatusDocument | None = None
        self._etcd = Etcd(settings)
        self._claim = Claim(self._etcd, key, settings.status_ttl)
        self._is_claimed = False
        self._refusal = ""
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._latest: dict[str, bytes] = {}
        self._written: dict[str, bytes] = {}
        self._lease = 0
        self._renew_at = 0.0
        self._confirmation = confirmation
        self._must_confirm = True
        self._is_confirmed = False
        self.own_keys = OwnKeyWatch()
        self._read: OwnKeys | None = None
        """What is to be compared yet."""
        self._compared: OwnKeys | None = None
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="tidegate-status", daemon=True)

    @property
    def problem(self) -> str:
        """Why the status cannot be written until a person acts; empty if it can. For any thread."""
        return self._claim.duplicate or self._refusal

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def submit(self, document: StatusDocument) -> None:
        """Make `document` the latest; it is written soon. For any thread; does not block."""
        value = encode(document)
        with self._changed:
            self._latest[self._key] = value
            self._status = document
            self._changed.notify()

    def submit_verdicts(self, verdicts: Mapping[str, bytes]) -> None:
        """Make these, by key, all verdicts of the host; as `submit`."""
        with self._changed:
            status = {key: value for key, value in self._latest.items() if key == self._key}
            self._latest = {**status, **verdicts}
            self._changed.notify()

    def compare(self, read: OwnKeys) -> None:
        """Put right what of this host's verdicts somebody else has changed; as `submit`.

        Args:
            read: the keys as they were read last.
        """
        if read is self._compared:
            return
        with self._changed:
            self._read = self._compared = read
            self._changed.notify()

    def stop(self, timeout: float = 3.0) -> bool:
        """Delete the keys and end the thread; return whether it ended in about `timeout` seconds.

        When etcd does not answer in that time, the keys disappear with their lease.
        """
        self._stop.set()
        with self._changed:
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._etcd.close()  # ends a call that is still under way
        if self._thread.is_alive():
            self._thread.join(0.5)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._keep()
            except CallFailed as failure:
                reason, pause = failure.reason, self._settings.fatal_retry
                self._refusal = "" if self._stop.is_set() else reason
            except Exception as error:
                log.exception("status_writer_crashed")
                reason, pause = f"an error in the agent: {error}", self._settings.fatal_retry
            else:
                continue
            if not self._stop.is_set():
                self._report(reason)
                self._stop.wait(pause)
        self._revoke_lease()

    def _keep(self) -> None:
        """Keep lease and keys up to date until stopped; raise what only a person can repair."""
        while not self._stop.is_set():
            self._await_work()
            if self._stop.is_set():
                return
            hang = self._hang()
            if hang:
                self._report(hang)
                self._stop.wait(self._settings.status_ttl / _LOOKS)
                continue
            until_done(
                self._step,
                self._etcd,
                self._stop,
                self._settings.backoff_max,
                lambda failure: self._report(failure.reason),
                again=_GONE_AGAIN,
            )
            self._refusal = ""
            self._report("")
            self._stop.wait(_MIN_INTERVAL)

    def _await_work(self) -> None:
        """Wait for a new document, for the lease to be due, or for the stop."""
        with self._changed:
            while not self._stop.is_set():
                due = self._renew_at
                if self._read is not None:
                    due = min(due, self.own_keys.due())
                due -= time.monotonic()
                new = self._latest != self._written
                new |= self._must_confirm and len(self._latest) > 1
                if self._latest and (new or due <= 0):
                    return
                self._changed.wait(max(due, 0.0) if self._latest else None)

    def _step(self) -> None:
        """Replace the lease if it is lost, write what is new, and then renew it if that is due."""
        with self._changed:
            latest, status = dict(self._latest), self._status
        is_new = latest.get(self._key) != self._written.get(self._key)
        try:
            self._make_sure()
            self._write(latest, self._strays(latest))
            is_due = time.monotonic() >= self._renew_at
            if is_due:
                self._claim.verify()
            if is_due or self._must_confirm:
                self._confirm(latest)
            if is_due:
                self._etcd.keep_alive(self._lease)
                self._renew_at = time.monotonic() + self._settings.status_ttl / 3
        except CallFailed as failure:
            self._must_confirm = True
            if failure.remedy is not Remedy.RELIST:
                raise
            self._lease = 0
            raise CallFailed(Remedy.RETRY, failure.reason) from failure
        if is_new and status is not None:
            self._acknowledge(status)

    def _make_sure(self) -> None:
        """Have a lease and the name."""
        if not self._lease:
            self._lease = self._etcd.grant(self._settings.status_ttl)
            self._renew_at = time.monotonic() + self._settings.status_ttl / 3
            self._is_claimed = False
            self._must_confirm, self._is_confirmed = True, False
        if not self._is_claimed:
            self._claim.look(self._status.instance if self._status else "")
            self._is_claimed, self._written = True, {}
            self.own_keys.forget()

    def _acknowledge(self, status: StatusDocument) -> None:
        try:
            self._on_written(status)
        except Exception:
            log.exception("status_not_acknowledged")

    def _strays(self, latest: Mapping[str, bytes]) -> list[str]:
        """Have what somebody else changed written anew; return keys that are not this host's."""
        with self._changed:
            read = self._read
            if read is None or time.monotonic() < self.own_keys.due():
                return []
            self._read = None
        foreign = self.own_keys.foreign(read)
        if foreign is None:
            return []
        if foreign:  # all of them change with the lease, and that is nobody's doing
            self._claim.verify()
        self.own_keys.answer(foreign)
        for key in foreign:
            self._written.pop(key, None)
        self._must_confirm |= self._confirmation in foreign
        return [key for key in foreign if key not in latest and key != self._confirmation]

    def _confirm(self, latest: Mapping[str, bytes]) -> None:
        """Say that all verdicts are up to date; take that back if there are none any more."""
        has_verdicts = len(latest) > 1
        if self._confirmation and (has_verdicts or self._is_confirmed):
            said = Confirmation(time.monotonic_ns(), self._settings.status_ttl / 3)
            value = verdicts.encode_confirmation(said) if has_verdicts else None
            self._commit({self._confirmation: value})
        self._must_confirm, self._is_confirmed = not has_verdicts, has_verdicts

    def _commit(self, values: dict[str, bytes | None]) -> None:
        self.own_keys.wrote(
            {key: value for key, value in values.items() if key != self._key},
            self._claim.write(values, self._lease),
        )

    def _write(self, latest: dict[str, bytes], strays: Iterable[str]) -> None:
        """Write the difference between `latest` and what is written, in batches."""
        written = self._written
        changes: dict[str, bytes | None] = {
            key: value for key, value in latest.items() if written.get(key) != value
        }
        changes |= dict.fromkeys((*(written.keys() - latest.keys()), *strays))
        # The status first: it is what holds the name.
        rest = iter(sorted(changes.items(), key=lambda change: change[0] != self._key))
        while batch := dict(islice(rest, _BATCH)):
            self._commit(batch)
            for key, value in batch.items():
                if value is None:
                    written.pop(key, None)
                else:
                    written[key] = value

    def _revoke_lease(self) -> None:
        """Delete the keys by revoking their lease; once, since it expires anyway."""
        if not self._lease:
            return
        try:
            self._etcd.revoke(self._lease, timeout=2.0)
        except CallFailed as failure:
            log.info("lease_not_revoked", reason=failure.reason)

    def _report(self, reason: str) -> None:
        if reason == self._error:
            return
        self._error = reason
        if reason:
            log.warning("status_not_written", reason=reason)
        else:
            log.info("status_written")
        try:
            self._on_error(reason)
        except Exception:
            log.exception("status_error_not_taken")
