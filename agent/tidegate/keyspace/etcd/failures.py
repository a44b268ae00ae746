# SPDX-License-Identifier: Apache-2.0
"""Decide what to do when an etcd call fails: the one place that reads gRPC status codes.

Codes are those of etcd's api/v3rpc/rpctypes/error.go. Nothing here retries.
"""

from enum import Enum
from typing import Any, Final

import grpc

from tidegate.errors import TidegateError

Code = grpc.StatusCode


class Remedy(Enum):
    """What to do about a failed call."""

    RETRY = "try again after a pause"
    RELIST = "what the call refers to is gone: start over from a list, or from a new lease"
    LOGIN = "log in again, then try again"
    OPERATOR = "a person must change something; trying again soon is useless"


class CallFailed(TidegateError):  # noqa: N818 - says what happened, as GenerationRefused does
    """One call to etcd failed.

    Attributes:
        remedy: what to do about it.
        reason: a sentence for an operator, without secrets.
        too_large: the answer did not fit a gRPC message; a smaller page may.
        too_slow: the answer was not there in time; a smaller page may be.
    """

    def __init__(
        self, remedy: Remedy, reason: str, *, too_large: bool = False, too_slow: bool = False
    ) -> None:
        super().__init__(reason)
        self.remedy = remedy
        self.reason = reason
        self.too_large = too_large
        self.too_slow = too_slow


_REMEDIES: Final = {
    Code.OUT_OF_RANGE: Remedy.RELIST,  # revision compacted, or in the future
    Code.NOT_FOUND: Remedy.RELIST,  # lease not found
    Code.UNAUTHENTICATED: Remedy.LOGIN,
    Code.PERMISSION_DENIED: Remedy.OPERATOR,
    Code.INVALID_ARGUMENT: Remedy.OPERATOR,
    Code.UNIMPLEMENTED: Remedy.OPERATOR,
}

# INVALID_ARGUMENT, but a new token mends both.
_LOGIN_DETAILS: Final = ("user name is empty", "revision of auth store is old")
_LOGIN_CANCELS: Final = ("auth token", *_LOGIN_DETAILS)


def from_rpc(error: grpc.RpcError, action: str, *, has_user: bool) -> CallFailed:
    """Turn a gRPC error into a remedy and a sentence.

    Args:
        error: what gRPC raised; it is a `grpc.Call` too, once the call was begun.
        action: what was tried, to be read after "could not".
        has_user: whether there is a user to log in as; without one, LOGIN becomes OPERATOR.
    """
    call: Any = error  # gRPC promises a Call here, and its types do not say so
    code = call.code() if hasattr(call, "code") else Code.UNKNOWN
    details = (call.details() if hasattr(call, "details") else None) or str(error)
    remedy = _REMEDIES.get(code, Remedy.RETRY)
    if code is Code.INVALID_ARGUMENT and any(text in details for text in _LOGIN_DETAILS):
        remedy = Remedy.LOGIN
    if remedy is Remedy.LOGIN and not has_user:
        remedy = Remedy.OPERATOR
        details += "; set etcd.user and etcd.password_file"
    too_large = code is Code.RESOURCE_EXHAUSTED and "larger than max" in details
    return CallFailed(
        remedy,
        f"could not {action}: etcd or gRPC answered {code.name}: {details}",
        too_large=too_large,
        too_slow=code is Code.DEADLINE_EXCEEDED,
    )


def from_cancel(reason: str, *, has_user: bool) -> CallFailed:
    """Turn the reason of a cancelled watch into a remedy and a sentence.

    etcd 3.4 says "permission denied" for a token that it no longer knows, too. So with a user the
    first answer to it is a new login; the list that follows tells the two apart.
    """
    lowered = reason.lower()
    if "permission denied" in lowered or any(text in lowered for text in _LOGIN_CANCELS):
        remedy = Remedy.LOGIN if has_user else Remedy.OPERATOR
    else:
        remedy = Remedy.RETRY
    return CallFailed(remedy, f"etcd cancelled the watch: {reason or 'no reason given'}")
