# SPDX-License-Identifier: Apache-2.0
"""Which failures of a start pass by themselves, and which need somebody."""

import errno
import subprocess

import pytest

from tidegate.agent.plane_start import is_passing
from tidegate.errors import CompileError, DataplaneError

PASSING = [
    OSError(errno.ENOMEM, "no memory for a map"),
    OSError(errno.EAGAIN, "no process for the compiler"),
    OSError(errno.EMFILE, "no descriptor"),
    subprocess.TimeoutExpired("the compiler", 60),
    MemoryError(),
]
LASTING = [OSError(errno.EPERM, "not allowed"), OSError(errno.ENOENT, "not there"), ValueError()]


def wrapped(cause: BaseException | None) -> DataplaneError:
    """Return what the data plane raises of a failure, two layers above it."""
    inner = CompileError("balancer.c does not compile", "")
    inner.__cause__ = cause
    outer = DataplaneError("cannot replace the program")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize("cause", PASSING, ids=repr)
def test_a_shortage_passes(cause: BaseException) -> None:
    """Of memory, processes, descriptors or time; however deep it is in what was raised."""
    assert is_passing(cause)
    assert is_passing(wrapped(cause))


@pytest.mark.parametrize("cause", [*LASTING, None], ids=repr)
def test_what_somebody_has_to_change_does_not_pass(cause: BaseException | None) -> None:
    """A right or a file that is missing, and a program that does not compile."""
    assert not is_passing(wrapped(cause))
