# SPDX-License-Identifier: Apache-2.0
"""A veth on which frames leave that the kernel makes (BPF_F_TEST_XDP_LIVE_FRAMES)."""

from typing import NamedTuple, Self

from bench.dataplane.method import run
from bench.dataplane.namespace import Namespace, received
from bench.dataplane.programs import Wrapper


class Wire(NamedTuple):
    """A veth that is up: index of the near end, what runs there, and the name of the far end."""

    index: int
    wrapper: Wrapper
    far: str

    @classmethod
    def lay(cls, namespace: Namespace, wrapper: Wrapper, end: int) -> Self:
        """Make a veth, with a program at the far end."""
        index, far = namespace.link(wrapper.fd, end)
        return cls(index, wrapper, far)

    def send(self, frame: bytes, count: int) -> float:
        """Make, run and transmit so many frames; return ns each."""
        return run(self.wrapper.fd, frame, count, self.index).each

    def received(self) -> int:
        """Return how many frames the far end has received."""
        return received(self.far)
