# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test folders share."""

from collections.abc import Iterator

import pytest

from etcd_server import EtcdServer


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    """Give a real etcd of the test's own, which the test may freeze, kill and wipe."""
    with EtcdServer() as server:
        yield server
