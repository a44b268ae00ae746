# SPDX-License-Identifier: Apache-2.0
"""Try a unary call again and again, with growing random pauses, until it works or we stop.

Not for streams: a stream's state is the next revision, and its loop reopens it there.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_when_event_set,
    wait_random_exponential,
)

from tidegate.errors import ConfigError
from tidegate.keyspace.etcd.client import Etcd
from tidegate.keyspace.etcd.failures import CallFailed, Remedy

T = TypeVar("T")

REBUILD_EVERY = 3
"""Failures in a row after which the channel is made anew: it may hold on to a frozen peer."""


def until_done(
    call: Callable[[], T],
    etcd: Etcd,
    stop: threading.Event,
    backoff_max: float,
    on_failure: Callable[[CallFailed], None],
    *,
    again: frozenset[Remedy] = frozenset({Remedy.RETRY}),
) -> T:
    """Call until it works. The pauses grow from 0.1 s to `backoff_max` seconds, with full jitter.

    Raises:
        CallFailed: of a remedy that is not in `again`, or the last failure when `stop` is set.
    """

    def note(state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        if isinstance(failure, CallFailed):
            on_failure(failure)
        if state.attempt_number % REBUILD_EVERY == 0:
            rebuild(etcd, on_failure)

    retrying = Retrying(
        retry=retry_if_exception(
            lambda error: isinstance(error, CallFailed) and error.remedy in again
        ),
        wait=wait_random_exponential(multiplier=0.1, max=backoff_max),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=note,
        reraise=True,
    )
    return retrying(call)


def rebuild(etcd: Etcd, on_failure: Callable[[CallFailed], None]) -> None:
    """Make the channel anew; if its files cannot be read just now, say so and keep the old one."""
    try:
        etcd.rebuild()
    except ConfigError as error:  # a certificate may be in the middle of its rotation
        on_failure(CallFailed(Remedy.RETRY, str(error)))
