# SPDX-License-Identifier: Apache-2.0
"""A lab whose agents serve and send metrics, for tests of these."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families

from support.collector.otlp_receiver import Receiver
from tidegate.lab import netns
from tidegate.lab.agents import AgentProcess, config_path, write_config
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.plan import CONTROL
from tidegate.lab.rack import Lab

PORT = 9470
LIMIT = 30.0
"""Seconds that anything may take on a loaded machine."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class MeteredLab:
    """A lab with an agent that serves metrics, and two backends behind one VIP.

    Traffic goes to lb1, except while a test has lb2 send metrics to a receiver.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.control = Control(lab)
        self._open()

    def _open(self) -> None:
        lab, control = self.lab, self.control
        control.put(
            "pools/web", {"health": {"check": {"type": "tcp", "interval": 0.3, "timeout": 0.25}}}
        )
        for name in ("b1", "b2"):
            control.put(f"pools/web/backends/{name}", {"address": str(lab.address(name))})
        vip = {"address": str(lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
        control.put("vips/web", vip)
        control.put("pools/shut", {})
        control.put("vips/shut", {**vip, "port": 81, "pool": "shut", "deny": ["0.0.0.0/0"]})
        self.route("lb1")
        path = write_config(lab.spec, "lb1")
        extra = f'[telemetry.prometheus]\nlisten = "127.0.0.1:{PORT}"\n'
        path.write_text(f"{path.read_text()}\n{extra}\n[telemetry.metrics]\nprogram_stats = true\n")
        with StatusWatch(lab, "lb1") as status:
            lab.start_agent("lb1", path)
            status.wait("synced", lambda s: s["state"] == "synced", LIMIT)

    def route(self, lb: str) -> None:
        """Have the router send VIP traffic to this host alone."""
        hop = ["via", str(self.lab.address(lb))]
        self.lab.node("router").run(["ip", "route", "replace", "10.99.0.0/24", *hop])

    def curl(self, *arguments: str) -> str:
        """Standard output of a curl on the LB host."""
        return self.lab.node("lb1").run(["curl", "--silent", "--show-error", *arguments]).stdout

    def socket(self, path: str, *arguments: str, lb: str = "lb1") -> str:
        """Return an answer of the control socket."""
        door = str(config_path(self.lab.spec, lb).parent / "agent.sock")
        return self.curl("--unix-socket", door, *arguments, f"http://localhost{path}")

    def samples(self, lb: str = "lb1") -> Samples:
        """Return what the control socket serves now."""
        return parsed(self.socket("/metrics", lb=lb))

    @contextmanager
    def telling(
        self, protocol: Literal["grpc", "http"], interval: float
    ) -> Iterator[tuple[Receiver, AgentProcess]]:
        """Traffic goes to lb2, whose agent sends metrics to a receiver on the control node."""
        lab = self.lab
        receiver = Receiver(protocol, address=str(lab.address(CONTROL)))
        with netns.entered(lab.node(CONTROL).namespace):
            receiver.start()
        path = write_config(lab.spec, "lb2")
        path.write_text(
            f'{path.read_text()}\n[telemetry]\nendpoint = "{receiver.endpoint}"\n'
            f'protocol = "{protocol}"\nsignals = ["metrics"]\ninterval = {interval}\n'
            "timeout = 1.0\nflush = 20.0\n"
        )
        with StatusWatch(lab, "lb2") as status:
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            agent = lab.start_agent("lb2", path)
            status.wait(
                "synced", lambda s: s["state"] != "starting" and s["started_at"] >= now, LIMIT
            )
        self.route("lb2")
        try:
            yield receiver, agent
        finally:
            self.route("lb1")
            agent.terminate(LIMIT)
            receiver.stop()

    def wait(self, what: str, accept: Callable[[Samples], bool]) -> Samples:
        """Samples that are accepted."""
        deadline = time.monotonic() + LIMIT
        while not accept(found := self.samples()):
            assert time.monotonic() < deadline, f"no {what}: {found}"
            time.sleep(1.05)  # what is asked for within a second is told again
        return found

    def visit(self, port: int, times: int) -> None:
        """Requests by a client, each over a connection of its own."""
        url = f"http://{self.lab.vip4()}:{port}/[1-{times}]"
        command = ["curl", "--silent", "--max-time", "1", "--no-keepalive", "--output", "/dev/null"]
        self.lab.client(1).run([*command, "-H", "Connection: close", url], check=False)


def parsed(text: str) -> Samples:
    """Samples by name and labels without the prefix of our own names."""
    return {
        (
            s.name,
            tuple(sorted((k.removeprefix("tidegate_"), v) for k, v in s.labels.items())),
        ): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def at(found: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return found[name, tuple(sorted((k.replace("__", "_"), v) for k, v in labels.items()))]


def total(found: Samples, name: str) -> float:
    """Return all samples of a metric."""
    return sum(value for (each, _), value in found.items() if each == name)
