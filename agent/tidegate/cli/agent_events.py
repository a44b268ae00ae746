# SPDX-License-Identifier: Apache-2.0
"""Read events from an agent, where the agent is the reader of the ring buffer."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from tidegate.agent.traces.flow_tap import HEAD, LONGEST_WAIT
from tidegate.cli import agent_socket
from tidegate.dataplane.kernel import layout
from tidegate.errors import AgentError


class AgentEvents:
    """A source of events, from now on.

    Args:
        socket: the agent's control socket.

    Raises:
        AgentError: no agent answers there, or it does not read the events.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._position, _, self._counted = HEAD.unpack_from(agent_socket.fetch(socket, "/events"))
        self._lost = 0

    def read(self, wait: float) -> npt.NDArray[np.void]:
        """Return the events since the last call; wait up to `wait` seconds for the first one.

        Raises:
            AgentError: the agent has ended, or its answer is not understood.
        """
        seconds = min(wait, LONGEST_WAIT)
        where = f"/events?after={self._position}&wait={seconds}"
        body = agent_socket.fetch(self._socket, where)
        if len(body) < HEAD.size or (len(body) - HEAD.size) % layout.EVENT.itemsize:
            raise AgentError(f"the agent on {self._socket} is of another version than this command")
        self._position, missed, counted = HEAD.unpack_from(body)
        self._lost += missed + counted - self._counted
        self._counted = counted
        return np.frombuffer(body, layout.EVENT, offset=HEAD.size)

    def lost(self) -> int:
        """Return how many events the kernel, or this process by being slow, has lost since then."""
        lost, self._lost = self._lost, 0
        return lost
