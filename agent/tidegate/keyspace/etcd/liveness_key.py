# SPDX-License-Identifier: Apache-2.0
"""Show that a process is alive, by a key under a lease that disappears when the process dies.

For commands that run for long, so that a person can tell a slow one from a dead one. Nothing
depends on it: transactions decide what may be written. A failure to renew it does not stop work.
"""

import time
from contextlib import suppress
from typing import Final

from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed

TTL: Final = 30
"""Seconds for which a dead process counts as alive."""
_RENEWAL: Final = TTL / 5


class LivenessKey:
    """A key with a value, from the first `renew` to `delete`."""

    def __init__(self, etcd: Etcd, key: str, value: str) -> None:
        """Prepare it; nothing is sent yet. The key is whole."""
        self._etcd = etcd
        self._key = key.encode()
        self._value = value.encode()
        self._lease = 0
        self._renew_at = 0.0

    def renew(self) -> str:
        """Renew the lease if that is due; return why that failed, empty if it did not."""
        if time.monotonic() < self._renew_at:
            return ""
        self._renew_at = time.monotonic() + _RENEWAL
        try:
            if self._lease:
                with suppress(CallFailed):
                    self._etcd.keep_alive(self._lease)
                    return ""
            self._lease = self._etcd.grant(TTL)
            self._etcd.put(self._key, self._value, self._lease)
        except CallFailed as failure:
            return failure.reason
        return ""

    def delete(self) -> None:
        """Delete the key by revoking its lease."""
        if self._lease:
            with suppress(CallFailed):
                self._etcd.revoke(self._lease, timeout=2.0)
        self._lease = 0
