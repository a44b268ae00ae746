# SPDX-License-Identifier: Apache-2.0
"""Send requests to the agent of this host, over its control socket.

Which socket: `--socket PATH`, else that of the agent's file (`-c`), else the default one.
"""

import argparse
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, Final

from tidegate.errors import AgentError

DEFAULT_SOCKET: Final = Path("/run/tidegate/agent.sock")
_TIMEOUT: Final = 45.0
"""s; the agent answers within 30."""


def add_socket(command: argparse.ArgumentParser) -> None:
    """Add the options that name an agent."""
    where = command.add_mutually_exclusive_group()
    where.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="the agent's file, which has its socket"
    )
    where.add_argument(
        "--socket", type=Path, metavar="PATH", help=f"the agent's socket ({DEFAULT_SOCKET})"
    )


def post_order(options: argparse.Namespace, path: str, **fields: object) -> dict[str, Any]:
    """Post an order and return the agent's answer.

    Raises:
        AgentError: nobody answers. What the agent refuses is an answer with `error`.
    """
    invoked_by = os.environ.get("SUDO_USER", "")
    body = {"reason": options.reason, "on_behalf_of": invoked_by[:100], **fields}
    return ask(_socket_path(options), "POST", path, json.dumps(body).encode())


def ask(path: Path, method: str, where: str, body: bytes = b"") -> dict[str, Any]:
    """Send one request to an agent's socket, and return the answer.

    Raises:
        AgentError: nobody answers, or what answers is not an agent.
    """
    connection = _Connection(path)
    try:
        connection.request(method, where, body, {"Content-Type": "application/json"})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unanswered(path, error) from error
    finally:
        connection.close()
    return answer


def fetch(path: Path, where: str) -> bytes:
    """Return the body of a path that an agent does not answer in JSON.

    Raises:
        AgentError: nobody answers, or the agent has nothing there; the text says why.
    """
    connection = _Connection(path)
    try:
        connection.request("GET", where)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == http.client.OK:
            return body
        sentence: str = json.loads(body)["error"]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise _unanswered(path, error) from error
    finally:
        connection.close()
    raise AgentError(f"the agent on {path}: {sentence}")


def _unanswered(path: Path, error: Exception) -> AgentError:
    if isinstance(error, OSError):
        return AgentError(
            f"no agent answers on {path} ({error.strerror or error}); is it running? "
            "name another socket with --socket, or the agent's file with -c"
        )
    return AgentError(f"what answers on {path} is not an agent: {error}")


def _socket_path(options: argparse.Namespace) -> Path:
    if options.config is not None:
        from tidegate.agent import config

        return Path(config.read(options.config).control_socket)
    return options.socket or DEFAULT_SOCKET


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))
