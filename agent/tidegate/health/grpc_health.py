# SPDX-License-Identifier: Apache-2.0
"""One call of grpc.health.v1.Health/Check, over HTTP/2 in plain text or TLS.

gRPC over HTTP/2: github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md. gRPC's own channels open their
sockets themselves, so they cannot carry the mark that sends a probe to its backend.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from tidegate.health.padding import padded_frames
from tidegate.health.result import Result
from tidegate.health.stream import CheckError, Stream, judged, tls_context
from tidegate.health.tcp import Destination

_PREFIX: Final = struct.Struct(">BI")
"""Compressed flag and length before each message."""
_FRAME_HEAD: Final = 9
"""Bytes before each frame's payload, whose length is the first three (RFC 9113, section 4.1)."""
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True, slots=True)
class Ask:
    """The question.

    Attributes:
        service: name of the service; empty for the server as a whole.
        host: the authority, and with TLS the name that the certificate must carry.
    """

    service: str
    host: str
    tls: bool = False
    verify: bool = True


@dataclass(slots=True)
class _Answer:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False


class _Frames:
    """Cuts what arrives where HTTP/2's frames end, so that each of them can be counted."""

    def __init__(self) -> None:
        self._head = b""
        self._missing = 0
        """Bytes of the frame's payload that have not come yet."""

    def split(self, data: bytes) -> Iterator[bytes]:
        """Yield the data in parts; with each part one frame ends, or the data."""
        place = began = 0
        while place < len(data):
            if self._missing:
                step = min(self._missing, len(data) - place)
                self._missing -= step
                place += step
            else:
                head = data[place : place + _FRAME_HEAD - len(self._head)]
                self._head += head
                place += len(head)
                if len(self._head) < _FRAME_HEAD:
                    break
                self._missing, self._head = int.from_bytes(self._head[:3]), b""
            if not self._missing:
                yield data[began:place]
                began = place
        if began < len(data):
            yield data[began:]


async def check(destination: Destination, ask: Ask, limit: float) -> Result:
    """Make one call on a connection of its own; SERVING passes."""

    async def talk(stream: Stream) -> None:
        context = tls_context(verify=ask.verify, protocol="h2") if ask.tls else None
        await stream.open(context, ask.host)
        _judge(await _call(stream, ask), ask)

    return await judged(destination, limit, talk)


async def _call(stream: Stream, ask: Ask) -> _Answer:
    connection = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    connection.initiate_connection()
    number = connection.get_next_available_stream_id()
    headers = {
        ":method": "POST",
        ":scheme": "https" if ask.tls else "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": ask.host,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": "tidegate-health",
    }
    connection.send_headers(number, list(headers.items()))
    message = health_pb2.HealthCheckRequest(service=ask.service).SerializeToString()
    connection.send_data(number, _PREFIX.pack(0, len(message)) + message, end_stream=True)
    await stream.send(padded_frames(connection.data_to_send(), stream.full))
    answer, frames = _Answer(), _Frames()
    while not answer.is_whole:
        await stream.send(connection.data_to_send())
        data = await stream.receive()
        if not data:
            raise CheckError("reset", "The connection ended before an answer.")
        if data.startswith(b"HTTP/1"):  # h2 would take it for a long frame, and wait for its end
            raise CheckError("mismatch", "The server speaks HTTP/1, not HTTP/2.")
        for part in frames.split(data):
            await stream.piece()
            try:
                events = connection.receive_data(part)
            except ProtocolError as error:
                raise CheckError("mismatch", f"The answer is not HTTP/2: {error}.") from error
            for event in events:
                _take(event, answer, connection)
    return answer


def _take(event: Event, answer: _Answer, connection: H2Connection) -> None:
    match event:
        case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
            answer.headers.update({bytes(name): bytes(value) for name, value in headers or ()})
        case DataReceived(data=data, flow_controlled_length=length, stream_id=number):
            answer.body += data or b""
            connection.acknowledge_received_data(length or 0, number or 0)
        case StreamEnded():
            answer.is_whole = True
        case StreamReset(error_code=code):
            raise CheckError("reset", f"The call was reset (HTTP/2 error {code}).")
        case ConnectionTerminated(error_code=code):
            raise CheckError("reset", f"The server ended the connection (HTTP/2 error {code}).")
        case _:
            pass


def _judge(answer: _Answer, ask: Ask) -> None:
    """Raise CheckError unless the answer is SERVING."""
    name = ask.service or "the server"
    http = answer.headers.get(b":status", b"none").decode("ascii", "replace")
    code = answer.headers.get(b"grpc-status", b"").decode("ascii", "replace")
    if http != "200" or code not in ("", "0"):
        what = f"gRPC status {code}" if code else f"HTTP status {http}"
        said = answer.headers.get(b"grpc-message", b"").decode("utf-8", "replace")
        raise CheckError("mismatch", f"The check of {name} gave {what} ({said or 'no message'}).")
    if len(answer.body) < _PREFIX.size:
        raise CheckError("mismatch", "The answer has no message.")
    try:
        response = health_pb2.HealthCheckResponse.FromString(answer.body[_PREFIX.size :])
    except DecodeError as error:
        raise CheckError("mismatch", f"The answer is no health response: {error}.") from error
    if response.status != _SERVING:
        state = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise CheckError("mismatch", f"The state of {name} is {state}; it must be SERVING.")
