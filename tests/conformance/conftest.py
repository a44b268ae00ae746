# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the conformance suite."""

from collections.abc import Iterator

import pytest

from both import Both, both_engines


@pytest.fixture
def both() -> Iterator[Both]:
    """Give the kernel and the model, which must agree on everything."""
    with both_engines() as found:
        yield found
