# SPDX-License-Identifier: Apache-2.0
"""Labs for the integration tests, of the size that a file's mark `lab` says.

    pytestmark = [pytest.mark.root, pytest.mark.lab(backends=3, lbs=2)]

Such a lab is bare: etcd and the backends run, no agent does, and the keyspace is empty.
"""

import secrets
from collections.abc import Iterator

import pytest

from tidegate.lab.control import StatusWatch
from tidegate.lab.plan import LabSpec
from tidegate.lab.rack import Lab


def _spec(request: pytest.FixtureRequest) -> LabSpec:
    """Return the size that the test's or the file's mark asks for, with a name of its own."""
    mark = request.node.get_closest_marker("lab")
    assert mark is not None, "mark the test or its file with pytest.mark.lab(backends=…)"
    return LabSpec(name=f"t{secrets.token_hex(4)}", **mark.kwargs)


@pytest.fixture
def bare_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give a bare lab of the test's own."""
    with Lab(_spec(request)) as lab:
        yield lab


@pytest.fixture(scope="module")
def shared_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Give the tests of a file one lab, which is bare before the first of them."""
    with Lab(_spec(request)) as lab:
        yield lab


@pytest.fixture
def status(bare_lab: Lab) -> Iterator[StatusWatch]:
    """Give the statuses of lb1 in the test's own lab, as they are written."""
    with StatusWatch(bare_lab, "lb1") as watch:
        yield watch
