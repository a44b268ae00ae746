# SPDX-License-Identifier: Apache-2.0
"""Real servers of checks' protocols in a lab's backend, which a test makes ill: HTTP, DNS, gRPC."""

import socket
import socketserver
import threading
import time
from concurrent import futures
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tidegate.lab import netns
from tidegate.lab.processes import Node

PAGE_PORT, DNS_PORT, GRPC_PORT = 8080, 53, 50051
WELL = "all is well"
NAME = "www.example"
_SERVING = health_pb2.HealthCheckResponse


class Responders:
    """The servers of one backend; a context manager.

    Attributes:
        status: of the HTTP answers.
        body: of the HTTP answers.
        delay: seconds before an HTTP answer.
        flaps: whether the answer to `/flap` is 503 instead of 200.
        flap_answers: answers to `/flap` so far; a condition tells of each.
        rcode: of the DNS answers.
    """

    def __init__(self, node: Node, resolver: IPv4Address) -> None:
        """Resolver: the VIP address that DNS is served on."""
        self._node = node
        self._resolver = str(resolver)
        self._held = ExitStack()
        self._health = health.HealthServicer()
        self.status = 200
        self.body = WELL
        self.delay = 0.0
        self.flaps = False
        self.flap_answers = 0
        self.flapped = threading.Condition()
        self.rcode = dns.rcode.NOERROR

    def serving(self, *, yes: bool) -> None:
        """What gRPC says of the server."""
        self._health.set("", _SERVING.SERVING if yes else _SERVING.NOT_SERVING)

    def wait_for_flap_answers(self, count: int) -> None:
        """Wait until `/flap` was answered this many times more."""
        with self.flapped:
            wanted = self.flap_answers + count
            assert self.flapped.wait_for(lambda: self.flap_answers >= wanted, 20), "no probes"

    def __enter__(self) -> Self:
        # Sockets stay in the namespace that they were made in, whoever uses them.
        with netns.entered(self._node.namespace):
            web = _Web(("::", PAGE_PORT), _page(self))
            resolver = _Dns((self._resolver, DNS_PORT), _resolve(self))
            rpc = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(self._health, rpc)
            assert rpc.add_insecure_port(f"[::]:{GRPC_PORT}") == GRPC_PORT
        self.serving(yes=True)
        rpc.start()
        self._held.callback(lambda: rpc.stop(0).wait(10))
        for server in (web, resolver):
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            self._held.callback(thread.join)
            self._held.callback(server.server_close)
            self._held.callback(server.shutdown)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()


class _Web(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6  # and IPv4: Linux's sockets on :: take both
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


class _Dns(socketserver.UDPServer):
    pass


def _page(told: Responders) -> type[BaseHTTPRequestHandler]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            flap = self.path == "/flap"
            status = (503 if told.flaps else 200) if flap else told.status
            if not flap:
                time.sleep(told.delay)
            body = WELL if flap else told.body
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())
            except ConnectionError:
                return  # the check did not wait so long
            if flap:
                with told.flapped:
                    told.flap_answers += 1
                    told.flapped.notify_all()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Page


def _resolve(told: Responders) -> type[socketserver.DatagramRequestHandler]:
    class Resolve(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            answer = dns.message.make_response(dns.message.from_wire(self.packet))
            answer.set_rcode(told.rcode)
            if told.rcode == dns.rcode.NOERROR:
                answer.answer.append(
                    dns.rrset.from_text(f"{NAME}.", 60, "IN", "A", "192.0.2.1"),
                )
            self.wfile.write(answer.to_wire())

    return Resolve
