# SPDX-License-Identifier: Apache-2.0
"""Every type of check against real servers on loopback, and every way to fail."""

import asyncio
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from support.collector.certificates import self_signed
from support.etcd.server import free_port
from tidegate.health import command, datagram, grpc_health, http
from tidegate.health.result import Result
from tidegate.health.tcp import Destination

HERE = "127.0.0.1"


def run(probe: Coroutine[Any, Any, Result]) -> Result:
    """Run one probe from beginning to end."""
    return asyncio.run(probe)


@contextmanager
def tcp_server(answer: Callable[[socket.socket], None]) -> Iterator[Destination]:
    """Yield a server that does this with each connection, one after another."""
    with socket.create_server((HERE, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    try:
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Destination(HERE, server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def saying(*parts: bytes) -> Callable[[socket.socket], None]:
    """Read a request and say this."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)

    return answer


def page(status: str = "200 OK", body: bytes = b"all is well") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


ASK = http.Ask("shop.example", "/health?full=1")


def get(destination: Destination, ask: http.Ask = ASK, limit: float = 5.0) -> Result:
    return run(http.get(destination, ask, limit))


def test_http_asks_what_the_check_says() -> None:
    """The request has the path, the host and no connection that stays; 2xx passes."""
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(page())

    with tcp_server(answer) as server:
        result = get(server)
    assert result.passed, result
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /health?full=1 HTTP/1.1"
    assert {"Host: shop.example", "Connection: close"} <= set(lines)


@pytest.mark.parametrize(
    ("answer", "ask", "code", "words"),
    [
        (page("503 Busy"), ASK, "mismatch", "The status is 503; it must be 200-299."),
        (page("301 Moved"), http.Ask("x", status=((200, 200), (300, 302))), "passed", ""),
        (page(), http.Ask("x", body="is well"), "passed", ""),
        (page(), http.Ask("x", body="is ill"), "mismatch", "does not contain 'is ill'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ASK, "mismatch", "not HTTP/1.1"),
        (b"", ASK, "reset", "The connection ended before an answer."),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", ASK, "mismatch", "not HTTP/1.1"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n0\r\n\r\n",
            http.Ask("x", body="all"),
            "passed",
            "",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000,
            http.Ask("x", body="y"),
            "mismatch",
            "more than 262144 bytes",
        ),
    ],
)
def test_http_judges_the_answer(answer: bytes, ask: http.Ask, code: str, words: str) -> None:
    """Status, body and form of the answer are checked, and the reason says which."""
    with tcp_server(saying(answer)) as server:
        result = get(server, ask)
    assert result.code == code, result
    assert words in result.reason


def test_a_server_that_says_nothing_is_a_timeout() -> None:
    """The reason says that the request had no answer, and the limit."""
    done = threading.Event()
    with tcp_server(lambda _connection: done.wait(5) and None) as server:
        result = get(server, limit=0.2)
        done.set()
    assert (result.code, result.reason) == ("timeout", "No answer to the request within 0.2 s.")


def test_a_closed_port_is_refused() -> None:
    """No listener: refused, for HTTP as for a bare connection."""
    assert get(Destination(HERE, free_port())).code == "refused"


def test_a_check_leaves_no_time_wait() -> None:
    """A probe's connection ends by a reset, so that thousands of them fit on a host."""
    with tcp_server(saying(page())) as server:
        assert get(server).passed
        listed = subprocess.run(
            ["ss", "-Htan", "state", "time-wait", f"( dport = :{server.port} )"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    assert listed == ""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate that nobody signed, with its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"), "shop.example", "DNS:shop.example")


@contextmanager
def tls_server(certificate: Path) -> Iterator[Destination]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(65536)
            secured.sendall(page())

    with tcp_server(answer) as server:
        yield server


def test_https_checks_the_certificate_unless_verify_is_off(certificate: Path) -> None:
    """An unsigned certificate is not accepted; with the check off its server passes."""
    with tls_server(certificate) as server:
        refused = get(server, http.Ask("shop.example", tls=True))
        accepted = get(server, http.Ask("other.example", tls=True, verify=False))
    assert refused.code == "certificate"
    assert "self-signed certificate" in refused.reason
    assert accepted.passed, accepted


def test_https_to_a_plain_server_is_an_error_of_tls() -> None:
    """What answers without TLS is named as that, not as a timeout."""
    with tcp_server(saying(page())) as server:
        result = get(server, http.Ask("x", tls=True))
    assert result.code == "error"
    assert "TLS" in result.reason


@contextmanager
def udp_server(answer: Callable[[bytes], bytes | None]) -> Iterator[Destination]:
    """Yield a server that answers datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 0))
        sock.settimeout(0.05)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    data, peer = sock.recvfrom(65535)
                except TimeoutError:
                    continue
                said = answer(data)
                if said is not None:
                    sock.sendto(said, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Destination(HERE, sock.getsockname()[1])
        finally:
            stop.set()
            thread.join(10)


def test_udp_sends_and_expects() -> None:
    """The answer must contain what is expected; nothing expected takes any answer."""
    with udp_server(lambda data: b"re: " + data) as server:
        assert run(datagram.ask(server, b"ping", b"ping", 2.0)).passed
        assert run(datagram.ask(server, b"ping", b"", 2.0)).passed
        other = run(datagram.ask(server, b"ping", b"pong", 2.0))
    assert (other.code, other.reason) == ("mismatch", "The answer does not contain b'pong'.")


def test_silent_udp_is_a_timeout_and_a_closed_port_is_refused() -> None:
    """ICMP's port unreachable is heard, since the socket is connected."""
    with udp_server(lambda _data: None) as server:
        assert run(datagram.ask(server, b"ping", b"", 0.1)).code == "timeout"
    assert run(datagram.ask(Destination(HERE, free_port()), b"ping", b"", 2.0)).code == "refused"


def dns_answer(code: dns.rcode.Rcode, *records: str) -> Callable[[bytes], bytes]:
    def answer(data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.set_rcode(code)
        for record in records:
            response.answer.append(
                dns.rrset.from_text(query.question[0].name, 60, "IN", "A", record)
            )
        return response.to_wire()

    return answer


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (dns_answer(dns.rcode.NOERROR, "192.0.2.1"), "passed", ""),
        (dns_answer(dns.rcode.NXDOMAIN), "mismatch", "www.example A is NXDOMAIN"),
        (dns_answer(dns.rcode.SERVFAIL), "mismatch", "www.example A is SERVFAIL"),
        (dns_answer(dns.rcode.NOERROR), "mismatch", "has no records"),
        (lambda _data: b"hello", "mismatch", "not DNS"),
        (
            lambda data: dns_answer(dns.rcode.NOERROR, "192.0.2.1")(bytes(2) + data[2:]),
            "mismatch",
            "another question",
        ),
    ],
)
def test_dns_wants_records(answer: Callable[[bytes], bytes], code: str, words: str) -> None:
    """NOERROR with a record passes; every other answer is named."""
    with udp_server(answer) as server:
        result = run(datagram.resolve(server, "www.example", "A", 2.0))
    assert result.code == code, result
    assert words in result.reason


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[Destination]:
    """Give the health service of gRPC itself: `up` serves, `down` does not, others are unknown."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("up", health_pb2.HealthCheckResponse.SERVING)
    servicer.set("down", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    yield Destination(HERE, port)
    server.stop(0).wait(10)


@pytest.mark.parametrize(
    ("service", "code", "words"),
    [
        ("", "passed", ""),
        ("up", "passed", ""),
        ("down", "mismatch", "The state of down is NOT_SERVING; it must be SERVING."),
        ("strange", "mismatch", "The check of strange gave gRPC status 5"),
    ],
)
def test_grpc_wants_serving(grpc_server: Destination, service: str, code: str, words: str) -> None:
    """SERVING passes; another state and an unknown service are named."""
    result = run(grpc_health.check(grpc_server, grpc_health.Ask(service, "shop.example"), 5.0))
    assert result.code == code, result
    assert words in result.reason


def test_grpc_to_another_protocol_is_a_mismatch() -> None:
    """A server of HTTP/1.1 is not taken for one of gRPC."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(page())
        while connection.recv(65536):  # to close with something unread would be a reset
            pass

    with tcp_server(answer) as server:
        result = run(grpc_health.check(server, grpc_health.Ask("", "x"), 5.0))
    assert result.code == "mismatch"
    assert result.reason == "The server speaks HTTP/1, not HTTP/2."


def script(*lines: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", "\n".join(lines))


def execute(program: tuple[str, ...], limit: float = 10.0) -> Result:
    return run(command.run(Destination("192.0.2.10", 443, 7), program, "web/b1", limit))


def test_a_program_decides_by_its_exit_code() -> None:
    """0 passes; else the last line of its complaint is the reason. It knows what it is about."""
    wanted = '"$TIDEGATE_BACKEND $TIDEGATE_ADDRESS $TIDEGATE_PORT $TIDEGATE_MARK"'
    assert execute(script(f'test {wanted} = "web/b1 192.0.2.10 443 7"')).passed
    failed = execute(script("echo first >&2", "echo no database >&2", "exit 3"))
    assert (failed.code, failed.reason) == ("mismatch", "It ended with exit code 3: no database.")


def test_a_program_that_is_not_there_is_named() -> None:
    """It is this host's fault, and the reason has its path."""
    result = execute(("/nowhere/check",))
    assert (result.code, result.reason) == (
        "host",
        "Cannot run /nowhere/check: No such file or directory.",
    )


def test_a_program_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """After the limit the whole group is gone."""
    note = tmp_path / "pid"
    result = execute(script(f"sleep 600 & echo $! > {note}", "wait"), limit=0.5)
    assert (result.code, result.reason) == ("timeout", "It did not end within 0.5 s.")
    status = Path(f"/proc/{note.read_text().strip()}/stat")
    assert not status.exists() or ") Z " in status.read_text()
