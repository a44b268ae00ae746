# SPDX-License-Identifier: Apache-2.0
"""What a host cannot probe, and whose fault an error is."""

import errno

import pytest

from tidegate.health.blame import Heard, failed
from tidegate.health.hindrance import Hindrances
from tidegate.health.result import Result
from tidegate.health.standing import Rules, after, unknown
from tidegate.model.values import BackendKey

LACKING = Result("host", "Too many open files.", 0.0)
PASSED = Result("passed", "", 0.001)
FAILED = Result("timeout", "No answer within 1 s.", 1.0)
OURS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EADDRNOTAVAIL,
    errno.EADDRINUSE,
    errno.EPERM,
    errno.ECHILD,
    errno.EAGAIN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EINVAL,
    errno.ENOSPC,
    errno.EMSGSIZE,
    errno.EAFNOSUPPORT,
)
RULES = Rules(rise=2, fall=3)


def test_a_sentence_names_backends_and_what_lacks() -> None:
    """Three names, the number of the others, the latest reason; it ends when they are probed."""
    found, keys = Hindrances(), [BackendKey("web", f"b{n}") for n in range(5)]
    assert [found.note(key, LACKING) for key in keys] == [True] + [False] * 4
    assert found.sentence() == (
        "This host cannot probe web/b0, web/b1, web/b2 and 2 more, which says nothing about them: "
        "Too many open files."
    )
    assert not found.note(keys[0], FAILED)
    found.keep(keys[:2])
    assert found.sentence().startswith("This host cannot probe web/b1, which")
    assert found.note(keys[1], PASSED)
    assert found.sentence() == ""


@pytest.mark.parametrize("before", [[], [PASSED] * 2, [FAILED] * 3, [PASSED, PASSED, FAILED]])
def test_what_the_host_lacks_moves_no_standing(before: list[Result]) -> None:
    """Neither up nor down, however often; a run of results goes on where it was."""
    standing = unknown(0.0)
    for result in before:
        standing = after(standing, result, RULES, 1.0)
    lacked = standing
    for _ in range(10):
        lacked = after(lacked, LACKING, RULES, 2.0)
    assert (lacked.state, lacked.since, lacked.streak) == (
        standing.state,
        standing.since,
        standing.streak,
    )
    for result in (PASSED, FAILED):
        assert after(lacked, result, RULES, 3.0) == after(standing, result, RULES, 3.0)


def test_a_backend_that_was_never_probed_says_why() -> None:
    """Its verdict is `initial` with the code `host` and the reason, until a probe is made."""
    lacked = after(unknown(0.0), LACKING, RULES, 1.0)
    assert (lacked.state, lacked.code, lacked.reason) == ("initial", "host", LACKING.reason)
    assert after(lacked, PASSED, RULES, 2.0).code == "checking"


@pytest.mark.parametrize(
    ("number", "known", "code"),
    [
        (errno.ECONNREFUSED, Heard(), "refused"),
        (errno.ECONNRESET, Heard(), "reset"),
        (errno.EPIPE, Heard(), "reset"),
        (errno.ETIMEDOUT, Heard(), "timeout"),
        (errno.EHOSTUNREACH, Heard(by_icmp=True), "unreachable"),
        (errno.EHOSTUNREACH, Heard(by_icmp=True, from_us=True), "host"),
        (errno.ECONNREFUSED, Heard(by_icmp=True, from_us=True), "host"),
        (errno.EHOSTUNREACH, Heard(), "host"),
        (errno.EACCES, Heard(by_icmp=True), "unreachable"),
        (errno.EACCES, Heard(), "host"),
        *((number, Heard(), "host") for number in OURS),
    ],
)
def test_an_error_has_one_whose_fault_it_is(number: int, known: Heard, code: str) -> None:
    """The other side's answer or silence, or what ICMP said; all else is this host's fault."""
    assert failed(OSError(number, "x"), 0.0, known).code == code
