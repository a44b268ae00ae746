# SPDX-License-Identifier: Apache-2.0
"""What this host lacks is no verdict on a backend: real routes, real limits, real ICMP errors."""

import asyncio
import json
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from support.etcd.server import Received
from tidegate.health import datagram, http
from tidegate.health.engine import Engine, Target
from tidegate.health.handshakes import Handshake
from tidegate.health.result import Result
from tidegate.health.tcp import Destination
from tidegate.lab import netns

pytestmark = pytest.mark.root  # namespaces, marks, routes

MARK = 7
FAR = "203.0.113.1"
"""An address behind the router."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *" ".join(words).split()], check=True, timeout=10)


@pytest.fixture
def host() -> Iterator[str]:
    """Give a namespace with 10.7.0.1 and, over a veth, a router with 10.7.0.2 and 10.7.0.9."""
    name, router = f"tgp{secrets.token_hex(3)}", f"tgr{secrets.token_hex(3)}"
    netns.create(name)
    netns.create(router)
    try:
        with netns.entered(name):
            ip("link set lo up")
            ip(f"link add eth0 type veth peer name eth0 netns {router}")
            ip("addr add 10.7.0.1/24 dev eth0")
            ip("link set eth0 up")
            subprocess.run(
                ["sysctl", "-qw", "net.ipv4.neigh.eth0.retrans_time_ms=50"], check=True, timeout=10
            )
        with netns.entered(router):
            ip("addr add 10.7.0.2/24 dev eth0")
            ip("link set lo up")
            ip("link set eth0 up")
            ip(f"route add unreachable {FAR}/32")
            subprocess.run(
                ["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0"],
                check=True,
                timeout=10,
            )
        yield name
    finally:
        netns.remove(name)
        netns.remove(router)


def handshake(to: Destination, limit: float) -> Result:
    """Return the first result of a TCP check of an engine in this thread's namespace."""
    results: Received[Result] = Received()
    engine: Engine[str] = Engine(lambda _key, result: results(result))
    # An engine's thread is in the namespace of the thread that starts it.
    engine.start()
    try:
        engine.probe({"a": Target(Handshake(to, limit), limit + 0.1)})
        return results.wait(lambda _: True, timeout=20)
    finally:
        assert engine.stop()


def page(to: Destination, limit: float) -> Result:
    return asyncio.run(http.get(to, http.Ask("x"), limit))


def question(to: Destination, limit: float) -> Result:
    return asyncio.run(datagram.ask(to, b"hello", b"", limit))


WAYS = pytest.mark.parametrize("probe", [handshake, page, question])
Probe = Callable[[Destination, float], Result]


@WAYS
@pytest.mark.parametrize(
    ("route", "words"),
    [
        ("", "Network is unreachable: look at this host's routes"),
        (f"unreachable {FAR}/32", "No route to host: look at this host's routes"),
        (f"prohibit {FAR}/32", "Permission denied: a route or a filter of this host"),
        (f"blackhole {FAR}/32", "Invalid argument"),
    ],
)
def test_a_host_without_a_route_is_at_fault(
    host: str, probe: Probe, route: str, words: str
) -> None:
    """A route that is missing or forbids is the host's fault, named with what to look at."""
    with netns.entered(host):
        if route:
            ip(f"route add {route}")
        result = probe(Destination(FAR, 80), 5.0)
    assert result.code == "host", result
    assert result.reason.startswith(words)


@WAYS
@pytest.mark.parametrize("mark", [0, MARK])
def test_a_router_that_says_unreachable_is_believed(host: str, probe: Probe, mark: int) -> None:
    """An ICMP error of somebody else is a failed check, even if it comes before connect returns."""
    with netns.entered(host):
        ip(f"route add {FAR}/32 via 10.7.0.2")
        result = probe(Destination(FAR, 80, mark), 5.0)
    assert (result.code, result.reason) == ("unreachable", "No route to host.")


@WAYS
@pytest.mark.parametrize(("mark", "code"), [(0, "unreachable"), (MARK, "host")])
def test_a_silent_neighbour_is_the_next_hop_of_a_mark(
    host: str, probe: Probe, mark: int, code: str
) -> None:
    """Without a mark the neighbour is the backend; with one it is this host's way to all."""
    with netns.entered(host):
        result = probe(Destination("10.7.0.77", 80, mark), 10.0)
    assert result.code == code, result


@WAYS
def test_a_closed_port_is_the_backends_failure(host: str, probe: Probe) -> None:
    """A reset, or the backend's own ICMP error, is `refused` with a mark as without."""
    with netns.entered(host):
        assert probe(Destination("10.7.0.2", 9, MARK), 5.0).code == "refused"


def test_a_question_larger_than_the_interface_is_no_finding(host: str) -> None:
    """A `packet_size` that this host's interface does not carry is the host's fault."""
    with netns.entered(host):
        to = Destination("10.7.0.2", 9, packet_size=4000)
        result = asyncio.run(datagram.ask(to, b"x", b"", 5.0))
    assert result.code == "host"
    assert "packet_size" in result.reason


LIMITED = """
    import json, os, resource, socket, sys, time
    from support.documents.roster import backend, desired, vip
    from tidegate.health.checker import Checker
    from tidegate.model.checks import Check, Health
    from tidegate.model.generation import NOTHING
    from tidegate.planner import plan

    BACKENDS = 200
    server = socket.create_server(("127.0.0.1", 0), backlog=4096)
    kind = sys.argv[1]
    if kind == "http":
        import threading
        def serve():
            while True:
                peer = server.accept()[0]
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
                peer.close()
        threading.Thread(target=serve, daemon=True).start()
    checker = Checker(lambda: None)
    check = Check(type=kind, interval=1.0, timeout=0.9, rise=1, fall=1)
    generation = plan(
        desired(
            [vip("a", "127.0.0.1", server.getsockname()[1])],
            [backend(f"b{i}", f"10.0.0.{i + 1}") for i in range(BACKENDS)],
            health=Health(check=check),
        ),
        NOTHING,
        1000,
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    checker.start()
    checker.follow(generation)

    def states():
        found = [each.state for each in checker.standings().values()]
        return {state: found.count(state) for state in set(found)}

    def until(wanted):
        end = time.monotonic() + 40
        while not wanted() and time.monotonic() < end:
            time.sleep(0.02)

    until(lambda: states() == {"healthy": BACKENDS})
    served = states()
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    until(checker.hindrance)

    time.sleep(2.5)
    hindered, starved = checker.hindrance(), states()
    for fd in taken:
        os.close(fd)
    until(lambda: not checker.hindrance())
    print(json.dumps([served, starved, hindered, checker.hindrance(), states()]))
"""


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_lack_of_descriptors_takes_no_backend_out(kind: str) -> None:
    """With 64 descriptors 200 backends are probed in turns; with none, none is found dead."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), kind],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        cwd="tests",
    )
    assert done.returncode == 0, done.stderr
    served, starved, hindered, after, states = json.loads(done.stdout)
    assert served == starved == states == {"healthy": 200}
    assert hindered.startswith("This host cannot probe web/b")
    assert "LimitNOFILE" in hindered
    assert after == ""
