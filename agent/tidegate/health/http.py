# SPDX-License-Identifier: Apache-2.0
"""One GET over HTTP/1.1 (RFC 9112), with or without TLS, and what its answer must be."""

from dataclasses import dataclass

import h11

from tidegate.health.padding import padded_head
from tidegate.health.result import Result
from tidegate.health.stream import CheckError, Stream, judged, tls_context
from tidegate.health.tcp import Destination

_AGENT = "tidegate-health"


@dataclass(frozen=True, slots=True)
class Ask:
    """The request, and what is expected.

    Attributes:
        host: the Host header, and with TLS the name that the certificate must carry.
        path: with its query, if any.
        status: first and last status code of each range that is good.
        body: text that the body must contain; empty for any body.
        tls: whether it is https.
        verify: whether the certificate is checked.
    """

    host: str
    path: str = "/"
    status: tuple[tuple[int, int], ...] = ((200, 299),)
    body: str = ""
    tls: bool = False
    verify: bool = True


async def get(destination: Destination, ask: Ask, limit: float) -> Result:
    """Make one request on a connection of its own."""

    async def talk(stream: Stream) -> None:
        context = tls_context(verify=ask.verify, protocol="http/1.1") if ask.tls else None
        await stream.open(context, ask.host)
        await _exchange(stream, ask)

    return await judged(destination, limit, talk)


async def _exchange(stream: Stream, ask: Ask) -> None:
    connection = h11.Connection(our_role=h11.CLIENT)
    await stream.send(padded_head(_head(connection, ask), stream.full))
    wanted, body = ask.body.encode(), bytearray()
    while True:
        try:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive()
                if not data and connection.their_state is h11.SEND_RESPONSE:
                    raise CheckError("reset", "The connection ended before an answer.")
                connection.receive_data(data)
                continue
        except h11.RemoteProtocolError as error:
            raise CheckError("mismatch", f"The answer is not HTTP/1.1: {error}.") from error
        await stream.piece()
        if isinstance(event, h11.Response):
            _check_status(event.status_code, ask)
        elif isinstance(event, h11.Data):
            body += event.data
            # Only what is new is searched, and what of the text may have come before it.
            if wanted and body.find(wanted, -len(event.data) - len(wanted)) >= 0:
                return
        elif isinstance(event, h11.EndOfMessage):
            if wanted not in body:
                raise CheckError("mismatch", f"The body does not contain {ask.body!r}.")
            return


def _head(connection: h11.Connection, ask: Ask) -> bytes:
    headers = [("Host", ask.host), ("User-Agent", _AGENT), ("Connection", "close")]
    request = h11.Request(method="GET", target=ask.path, headers=headers)
    return (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")


def _check_status(code: int, ask: Ask) -> None:
    if not any(first <= code <= last for first, last in ask.status):
        good = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ask.status)
        raise CheckError("mismatch", f"The status is {code}; it must be {good}.")
