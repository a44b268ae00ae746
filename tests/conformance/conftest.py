# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the conformance suite."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from support.packets import tunnelled
from support.packets.both import Both, both_engines
from tidegate.dataplane.tunnel.tunnel import Decap


@pytest.fixture
def both() -> Iterator[Both]:
    """Give the kernel and the specification, which must agree on everything."""
    with both_engines() as found:
        yield found


@pytest.fixture(scope="module")
def decaps() -> Iterator[dict[str, Decap]]:
    """Give decap.c loaded with each of the settings."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(Decap(accept)) for name, accept in tunnelled.SETTINGS.items()
        }


@pytest.fixture(params=["anything", "strict"])
def end(request: pytest.FixtureRequest, decaps: dict[str, Decap]) -> tunnelled.Both:
    """Give a backend's end of the tunnel: one that takes anything, and one that does not."""
    return tunnelled.Both(tunnelled.SETTINGS[request.param], decaps[request.param])


@pytest.fixture
def strict(decaps: dict[str, Decap]) -> tunnelled.Both:
    """Give the end that does not."""
    return tunnelled.Both(tunnelled.STRICT, decaps["strict"])
