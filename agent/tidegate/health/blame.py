# SPDX-License-Identifier: Apache-2.0
"""Whose fault a failed system call is: the backend's, the way's, or this host's own.

A host that lacks descriptors, memory or a route has learnt nothing about a backend. Were that taken
for a failed check, a shortage here would take healthy backends out of service. So an error becomes
a verdict only if it says that something came back, or that nothing did:

* ECONNREFUSED, ECONNRESET, EPIPE, ECONNABORTED and ETIMEDOUT are the other side's answer, or its
  silence.
* EHOSTUNREACH, ENETUNREACH and their like (`_SAID_BY_ICMP`) have two causes with one number: an
  ICMP error came in, or this host's kernel itself has no route, has one that forbids, or a filter
  that drops. To see which came in, the socket keeps ICMP errors (IP_RECVERR, ip(7)). Whether
  connect() failed at once says nothing: where the next hop is in the same machine, its ICMP error
  arrives before connect() returns. Without an ICMP error the kernel alone speaks: the host's fault.
* An ICMP error whose sender is this host is what the kernel tells itself when a neighbour does not
  answer (ARP, neighbour discovery), and what a filter of this host says that rejects. A probe with
  a mark is routed by the VIP's address, and then put into the tunnel: that neighbour is the host's
  next hop, the same for all backends, so it is the host's fault. Without a mark it is the backend,
  if that is on the link, and so its failure. The backend's own ICMP errors come from the VIP, which
  a host may have too; those are the backend's.
* All else (EMFILE, ENOMEM, ENOBUFS, EADDRNOTAVAIL, EPERM, EAGAIN ...) is the host's fault.

What cannot be told apart: SYNs that a filter of this host drops without a word, and a next hop that
is silent for less than the kernel takes to give it up (3 s by default), end as timeouts. A host on
which all checks fail in such a way is blind, which is for the comparison with other hosts to find
(`verdict`).
"""

import contextlib
import errno
import os
import resource
import socket
import struct
from typing import Final, NamedTuple

from tidegate.health.result import Code, Result

_ANSWERS: Final[dict[int, Code]] = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.ETIMEDOUT: "timeout",
}
_SAID_BY_ICMP: Final = frozenset(
    (
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EACCES,
        errno.EMSGSIZE,
    )
)
"""What the kernel makes of ICMP errors, a closed port aside (icmp_err_convert, tab_unreach)."""

_NO_ROUTE: Final = "look at this host's routes to the VIP's address"
_NO_DESCRIPTOR: Final = "raise LimitNOFILE in the agent's unit, or probe fewer backends"
_REMEDIES: Final[dict[int, str]] = {
    errno.EMFILE: _NO_DESCRIPTOR,
    errno.ENFILE: "raise fs.file-max on this host",
    errno.ENOMEM: "give this host or the agent's unit (MemoryMax) more memory",
    errno.ENOSPC: "raise fs.epoll.max_user_watches on this host",
    errno.ENOBUFS: "give this host more memory for sockets",
    errno.EAGAIN: "raise TasksMax in the agent's unit, or free resources of this host",
    errno.EADDRNOTAVAIL: "the check's source address must be one of this host, with free ports",
    errno.EADDRINUSE: "this host has no free port for the check's source address",
    errno.EPERM: "a filter of this host forbids it, or the agent lacks CAP_NET_ADMIN",
    errno.EACCES: "a route or a filter of this host forbids it",
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
    errno.ENETDOWN: "an interface of this host is down",
    errno.EMSGSIZE: "the check's packet_size is more than this host's interface carries",
}

_EXTENDED: Final = struct.Struct("=IBBBBII")
"""struct sock_extended_err (linux/errqueue.h); the sender's address follows."""
_BY_ICMP: Final = (2, 3)
"""SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6."""
_KEEP_ERRORS: Final = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
"""IP_RECVERR (linux/in.h) and IPV6_RECVERR (linux/in6.h)."""


class Heard(NamedTuple):
    """What is known of a failed call.

    Attributes:
        by_icmp: an ICMP error came in.
        from_us: its sender is this host.
    """

    by_icmp: bool = False
    from_us: bool = False


def keep_errors(sock: socket.socket, *, keep: bool) -> None:
    """Keep ICMP errors, to ask for their sender; else forget them, so that they end nothing."""
    level, option = _KEEP_ERRORS[sock.family]
    sock.setsockopt(level, option, int(keep))


def heard(sock: socket.socket, to: str, *, is_marked: bool) -> Heard:
    """Return which ICMP error a socket has; reading it takes it away.

    Args:
        sock: one that keeps errors.
        to: address that it speaks to.
        is_marked: its packets take the tunnel.
    """
    with contextlib.suppress(OSError):
        for level, kind, data in sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)[1]:
            if (level, kind) != _KEEP_ERRORS[sock.family] or len(data) < _EXTENDED.size:
                continue
            if _EXTENDED.unpack_from(data)[1] in _BY_ICMP:
                sender = _address(sock.family, data[_EXTENDED.size :])
                from_us = is_marked and sender != to and _is_ours(sock.family, sender)
                return Heard(by_icmp=True, from_us=from_us)
    return Heard()


def failed(error: OSError, seconds: float, known: Heard = Heard()) -> Result:  # noqa: B008 - frozen
    """Return the result of a probe that the system ended after this long."""
    number = error.errno or 0
    said = os.strerror(number) if number else str(error)
    if known.from_us:
        remedy = "this host's next hop does not answer, or its own filter rejects"
        return Result("host", f"{said}: {remedy}.", seconds)
    if number in _ANSWERS:
        return Result(_ANSWERS[number], f"{said}.", seconds)
    if known.by_icmp and number in _SAID_BY_ICMP:
        return Result("unreachable", f"{said}.", seconds)
    return lacking(error, seconds)


def lacking(error: OSError, seconds: float, doing: str = "") -> Result:
    """Return the result of a probe that this host could not make, with what to do.

    Args:
        error: why not.
        seconds: how long it took to find out.
        doing: what failed; empty for a call on a socket.
    """
    number = error.errno or 0
    said = os.strerror(number) if number else str(error)
    if number == errno.EMFILE:
        said += f", at {descriptor_limit()}"
    remedy = _REMEDIES.get(number)
    reason = ": ".join(filter(None, (doing, said, remedy)))
    return Result("host", f"{reason}.", seconds)


def crowded(limit: int, seconds: float) -> Result:
    """Return the result of a probe for which there was no descriptor of this host's limit."""
    return Result("host", f"No descriptor of {limit} is free: {_NO_DESCRIPTOR}.", seconds)


def lacks_descriptors() -> OSError | None:
    """Return why no file can be opened at the moment, or None if one can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error
    return None


def descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _address(family: int, data: bytes) -> str:
    """Return the address in a sockaddr, or "" if there is none."""
    start, size = (4, 4) if family == socket.AF_INET else (8, 16)
    if len(data) < start + size or struct.unpack_from("=H", data)[0] != family:
        return ""
    return socket.inet_ntop(family, data[start : start + size])


def _is_ours(family: socket.AddressFamily, address: str) -> bool:
    """Return whether this host has an address: whether a socket can be bound to it."""
    if not address:
        return False
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True
