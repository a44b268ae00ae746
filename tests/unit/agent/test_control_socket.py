# SPDX-License-Identifier: Apache-2.0
"""The control socket on real sockets: who may come, what is bounded, what a dead agent leaves."""

import json
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from support.documents.roster import backend, web
from tidegate.agent.operator.orders import Posted, Rollback
from tidegate.agent.operator.routes import OperatorRoutes
from tidegate.agent.operator.socket import LIMITS, ControlSocket
from tidegate.agent.rollback_states import RollbackStates
from tidegate.cli.agent_socket import ask
from tidegate.errors import AgentError
from tidegate.http_server import Answer, Request


def echo(request: Request) -> Answer:
    return Answer(HTTPStatus.OK, {"user": request.user, "body": request.body.decode()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def control_socket(path: Path) -> Iterator[ControlSocket]:
    with closing(ControlSocket(path, {("POST", "/echo"): echo, ("GET", "/who"): echo})) as made:
        yield made


def raw(path: Path, text: bytes) -> bytes:
    """Return everything that a client gets that sends these bytes and waits."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(text)
        heard = b""
        while part := client.recv(4096):
            heard += part
        return heard


@pytest.mark.usefixtures("control_socket")
def test_the_kernel_says_who_asks(path: Path) -> None:
    """What a client claims to be does not count; the socket's peer does."""
    assert ask(path, "POST", "/echo", b"hello") == {"user": "root", "body": "hello"}


@pytest.mark.usefixtures("control_socket")
def test_only_the_owner_may_connect(path: Path) -> None:
    """From the moment on at which the socket has its name."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["agent.sock"]


@pytest.mark.parametrize(
    ("method", "where", "sentence"),
    [
        ("GET", "/nothing", "there is no /nothing; there are: GET /who, POST /echo"),
        ("GET", "/echo", "wants another method"),
    ],
)
@pytest.mark.usefixtures("control_socket")
def test_a_wrong_path_is_answered_with_the_right_ones(
    path: Path, method: str, where: str, sentence: str
) -> None:
    """So an operator who guesses finds out."""
    assert sentence in ask(path, method, where)["error"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 5000\r\n", b"413"),
        (b"Content-Length: many\r\n", b"411"),
        (b"Transfer-Encoding: chunked\r\n", b"411"),
        (b"X: " + b"x" * 70_000 + b"\r\n", b"431"),
        (b"X: 1\r\n" * 200, b"431"),
    ],
)
@pytest.mark.usefixtures("control_socket")
def test_what_a_client_sends_is_bounded(path: Path, head: bytes, status: bytes) -> None:
    """A body, a header and their number."""
    assert raw(path, b"POST /echo HTTP/1.1\r\n" + head + b"\r\n").startswith(b"HTTP/1.1 " + status)


def test_a_silent_client_delays_no_other(path: Path) -> None:
    """It is disconnected after a while, and others are served meanwhile."""
    limits = LIMITS._replace(idle_seconds=1.0)
    with (
        closing(ControlSocket(path, {("POST", "/echo"): echo}, limits)),
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.settimeout(20)
        silent.connect(str(path))
        silent.sendall(b"POST /echo HTTP/1.1\r\n")
        assert ask(path, "POST", "/echo", b"me")["body"] == "me"
        assert silent.recv(1) == b""


def test_a_client_that_is_never_silent_is_cut_off_as_well(path: Path) -> None:
    """A connection lasts so long at the most, whatever comes in on it."""
    limits = LIMITS._replace(longest_seconds=1.0)
    with (
        closing(ControlSocket(path, {("POST", "/echo"): echo}, limits)),
        socket.socket(socket.AF_UNIX) as busy,
    ):
        busy.connect(str(path))
        busy.sendall(b"POST /echo HTTP/1.1\r\n")
        assert trickle(busy) < 100


@pytest.mark.usefixtures("control_socket")
def test_those_who_dawdle_keep_nobody_out(path: Path) -> None:
    """With every place taken by silent clients, the next is served at once, and one of them cut."""
    held = [socket.socket(socket.AF_UNIX) for _ in range(LIMITS.clients)]
    for client in held:
        client.connect(str(path))
    assert ask(path, "GET", "/who")["user"] == "root"
    held[0].settimeout(5)
    assert held[0].recv(1) == b""
    for client in held:
        client.close()


def test_orders_that_are_carried_out_keep_their_places(path: Path) -> None:
    """Clients beyond the bound are turned away then, and let in again when others have gone."""
    done, begun = threading.Event(), threading.Semaphore(0)

    def slowly(request: Request) -> Answer:
        begun.release()
        done.wait(20)
        return echo(request)

    routes = {("POST", "/slow"): slowly, ("GET", "/who"): echo}
    with closing(ControlSocket(path, routes)), ThreadPoolExecutor(LIMITS.clients) as pool:
        orders = [pool.submit(ask, path, "POST", "/slow", b"me") for _ in range(LIMITS.clients)]
        for _ in orders:
            assert begun.acquire(timeout=10)
        with pytest.raises(AgentError):
            ask(path, "GET", "/who")
        done.set()
        assert [order.result(10)["body"] for order in orders] == ["me"] * LIMITS.clients
        assert first_answer(path)["user"] == "root"


def test_a_request_must_be_there_in_time(path: Path) -> None:
    """However it trickles in, before the time for the whole connection is over."""
    limits = LIMITS._replace(asking_seconds=1.0)
    with (
        closing(ControlSocket(path, {("POST", "/echo"): echo}, limits)),
        socket.socket(socket.AF_UNIX) as busy,
    ):
        busy.connect(str(path))
        busy.sendall(b"POST /echo HTTP/1.1\r\n")
        assert trickle(busy) < 40


def trickle(client: socket.socket) -> int:
    """Send a hundred headers, ten a second, and return how many of them were taken."""
    for number in range(100):
        try:
            client.sendall(f"X: {number}\r\n".encode())
        except OSError:
            return number
        threading.Event().wait(0.1)
    return 100


def first_answer(path: Path) -> dict[str, Any]:
    """Return the answer of the first request that is accepted."""
    for _ in range(100):
        try:
            return ask(path, "GET", "/who")
        except AgentError:
            threading.Event().wait(0.05)  # its thread has yet to see the end of the client
    raise AssertionError("nobody is let in")


def test_a_dead_agents_socket_is_replaced(path: Path) -> None:
    """No process answers on it."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with closing(ControlSocket(path, {("GET", "/who"): echo})):
        assert ask(path, "GET", "/who")["user"] == "root"
    assert not path.exists()


@pytest.mark.usefixtures("control_socket")
def test_a_living_agents_socket_is_not(path: Path) -> None:
    """The second one gets an error that says so, and the first one still answers."""
    with pytest.raises(AgentError, match="another agent answers"):
        ControlSocket(path, {})
    assert ask(path, "GET", "/who")["user"] == "root"


def test_a_file_is_not_taken_for_a_socket(path: Path) -> None:
    """The file stays."""
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(AgentError, match="is not a socket"):
        ControlSocket(path, {})
    assert path.read_text() == "mine"


def test_an_order_waits_for_the_loop(path: Path) -> None:
    """The client's thread posts it, and answers with what the loop says."""
    posted: list[Posted] = []

    def post(order: Posted) -> bool:
        posted.append(order)
        order.answer.set_result(Answer(HTTPStatus.OK, {"done": True}))
        return True

    with closing(ControlSocket(path, OperatorRoutes(post, RollbackStates(3), bytes).routes())):
        body = json.dumps({"to": 7, "reason": "why", "on_behalf_of": "eve"}).encode()
        assert ask(path, "POST", "/rollback", body) == {"done": True}
        bad = ask(path, "POST", "/rollback", b'{"too": 7}')
        assert "the body is not understood" in bad["error"]
        assert "starting" in ask(path, "GET", "/status")["error"]
    (order,) = (each.order for each in posted)
    assert isinstance(order, Rollback)
    assert (order.to, order.signature.user, order.signature.reason) == (7, "root for eve", "why")


def test_a_loop_with_too_many_orders_refuses_more(path: Path) -> None:
    """The order is not kept for later, when nobody expects it any more."""
    with closing(
        ControlSocket(path, OperatorRoutes(lambda _: False, RollbackStates(3), bytes).routes())
    ):
        assert "too many" in ask(path, "POST", "/freeze")["error"]


def test_states_differ_by_documents_not_moments() -> None:
    """Generations that differ by time alone are one state; the depth is of others than now."""
    past = RollbackStates(2)
    one, two = web(backend("b1")), web(backend("b1"), backend("b2"))
    for number, wanted in enumerate([one, one, two, two, one, two], start=1):
        past.remember(number, f"d{number}", wanted)
    assert [(state.first, state.last) for state in past.states] == [(3, 4), (5, 5), (6, 6)]
    before = past.before()
    assert before is not None
    assert (before.first, before.digest) == (5, "d5")
    assert past.find(1) is None
    assert past.find(4) is past.states[0]
    assert past.listed().startswith("5 (revision 1, digest d5); 3 to 4")
    assert RollbackStates(2).before() is None
    assert RollbackStates(2).listed() == "none yet"
