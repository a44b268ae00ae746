# SPDX-License-Identifier: Apache-2.0
"""The lab as one object: build it, use its nodes, tear it down.

Use:
    with Lab(LabSpec(name="mine", backends=3)) as lab:
        lab.start_agent("lb1")
        lab.etcdctl("put", "/tidegate/default/config/live/pools/web", "{}")
        lab.client(1).run(["ping", "-c1", str(lab.address("b1"))])
"""

from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tidegate.errors import LabError
from tidegate.lab import agents, netns, services, state, wiring
from tidegate.lab.agents import AgentProcess
from tidegate.lab.plan import (
    CONTROL,
    NETNS_ROOT,
    NIC,
    ROUTER,
    LabSpec,
    Role,
    Station,
    etcd_endpoints,
    vip4,
    vip6,
)
from tidegate.lab.processes import Node, kill_named

if TYPE_CHECKING:
    import subprocess

Address = IPv4Address | IPv6Address


class Lab:
    """A rack in network namespaces.

    As a context manager it is built afresh on entry and removed on exit, and nobody else can use
    its name meanwhile. `up` and `attach` are for labs that outlive the process.
    """

    def __init__(self, spec: LabSpec) -> None:
        spec.check()
        self.spec = spec
        self.stations = {station.name: station for station in spec.stations()}
        self.nodes = {name: Node(name, spec.namespace(name)) for name in (ROUTER, *self.stations)}
        self.agents: dict[str, AgentProcess] = {}
        self.etcds: dict[str, subprocess.Popen[bytes]] = {}
        self._vips: list[Address] = []
        for number in range(1, spec.vips + 1):
            self._vips += (vip4(number), vip6(number))
        self._children: list[subprocess.Popen[bytes]] = []
        self._held = ExitStack()

    @classmethod
    def attach(cls, name: str) -> "Lab":
        """Return the lab of this name, which is up.

        Raises:
            LabError: it does not exist; the text lists those that do.
        """
        LabSpec(name=name).check()
        spec = state.saved(name)
        if spec is None:
            others = ", ".join(state.names())
            raise LabError(
                f"there is no lab {name!r}"
                + (f" (there are: {others})" if others else "")
                + f": build it with `tidegate lab up --name {name}`"
            )
        return cls(spec)

    def __enter__(self) -> Self:
        self._held.enter_context(state.locked(self.spec.name))
        try:
            self.up()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.down()
        finally:
            self._held.close()

    def up(self) -> None:
        """Build it, after removing whatever a crashed run of the same name left.

        Raises:
            LabError: something could not be built or does not answer.
            CapabilityError: the host lacks something.
        """
        services.require_programs()
        self.down()
        try:
            self._build()
        except BaseException:
            self.down()
            raise
        state.save(self.spec)

    def _build(self) -> None:
        # imported here: it brings bcc, and `down` and `status` do without
        from tidegate.dataplane.kernel.programs import attach_pass  # noqa: PLC0415
        from tidegate.dataplane.tunnel.tunnel import attach_decap  # noqa: PLC0415

        wiring.build(self.spec)
        for name in self.nodes:
            self.folder(name).mkdir(parents=True)
        for node in self._of(Role.CONTROL):
            self.start_etcd(node.name)
        started = []
        for node in self.backends():
            for vip in self._vips:
                wiring.add_loopback_address(node.namespace, vip)
            services.write_nginx(self.folder(node.name), node.name, self._vips)
            nginx = services.start_nginx(node, self.folder(node.name))
            echo = services.start_echo(node)
            started.append((node, nginx, echo))
            self._children += (nginx, echo)
        for lb in self.lbs():
            agents.write_config(self.spec, lb.name)
            with netns.entered(self.nodes[ROUTER].namespace):
                attach_pass(self.stations[lb.name].uplink)
        for node in self.backends():
            with netns.entered(node.namespace):
                attach_decap(NIC)
        for node, nginx, echo in started:
            log = self.folder(node.name) / "nginx-error.log"
            services.wait_for_http(node, self._vips[-1], nginx, log)
            services.wait_for_echo(node, echo)
        for node in self._of(Role.CONTROL):
            self.wait_for_etcd(node.name)

    def is_whole(self) -> bool:
        """Return whether every node is there and every server of it is running."""
        nodes = self.status()["nodes"]
        needed = {node.name: 1 for node in self._of(Role.CONTROL)}
        needed |= {node.name: 3 for node in self.backends()}
        return all(
            node["exists"] and len(node["processes"]) >= needed.get(node["name"], 0)
            for node in nodes
        )

    def down(self) -> bool:
        """Remove it, and return whether there was anything to remove. Safe to call twice."""
        found = state.erase(self.spec)
        for child in (*self._children, *(agent.process for agent in self.agents.values())):
            child.wait()  # they are dead; this is to leave no zombie
        self._children.clear()
        self.agents.clear()
        return found

    # nodes

    def folder(self, node: str) -> Path:
        """Return a node's folder for configuration, logs and data."""
        return self.spec.folder / node

    def node(self, name: str) -> Node:
        """Return a node by name.

        Raises:
            LabError: it does not exist; the text lists those that do.
        """
        try:
            return self.nodes[name]
        except KeyError as error:
            raise LabError(
                f"lab {self.spec.name!r} has no node {name!r}; it has {', '.join(self.nodes)}"
            ) from error

    def client(self, number: int) -> Node:
        """Return client 1 or 2."""
        return self.node(f"client{number}")

    def backends(self) -> list[Node]:
        """Return all backends, b1 first."""
        return self._of(Role.BACKEND)

    def lbs(self) -> list[Node]:
        """Return all LB hosts, lb1 first."""
        return self._of(Role.LB)

    def _of(self, role: Role) -> list[Node]:
        return [self.nodes[name] for name, one in self.stations.items() if one.role is role]

    def station(self, name: str) -> Station:
        """Return a node's place in the plan; the router has none.

        Raises:
            LabError: there is no such node.
        """
        self.node(name)
        if name not in self.stations:
            raise LabError("the router has an address on each link, and none of its own")
        return self.stations[name]

    def address(self, name: str, family: int = 4, *, second: bool = False) -> Address:
        """Return a node's address; backends have a second one."""
        station = self.station(name)
        host = 3 if second else 2
        return station.address4(host) if family == 4 else station.address6(host)  # noqa: PLR2004 - an IP version

    # VIPs and servers

    def vip4(self, number: int = 1) -> IPv4Address:
        """Return IPv4 VIP address number 1, 2, …."""
        return vip4(number)

    def vip6(self, number: int = 1) -> IPv6Address:
        """Return IPv6 VIP address number 1, 2, …."""
        return vip6(number)

    def add_vip(self, address: Address) -> None:
        """Have all backends serve one more VIP address; return when they do."""
        if address in self._vips:
            return
        self._vips.append(address)
        for node in self.backends():
            wiring.add_loopback_address(node.namespace, address)
            services.write_nginx(self.folder(node.name), node.name, self._vips)
            node.run([*self._nginx(node), "-s", "reload"])
        for node in self.backends():
            log = self.folder(node.name) / "nginx-error.log"
            services.wait_for_http(node, address, None, log)

    def stop_http(self, backend: str) -> None:
        """Kill a backend's nginx (SIGKILL, workers too); its kernel stays and answers with RST."""
        kill_named(self.node(backend).namespace, "nginx")

    def start_http(self, backend: str) -> None:
        """Start a backend's nginx again; return when it answers."""
        node = self.node(backend)
        process = services.start_nginx(node, self.folder(backend))
        self._children.append(process)
        log = self.folder(backend) / "nginx-error.log"
        services.wait_for_http(node, self._vips[-1], process, log)

    def set_link(self, name: str, *, up: bool) -> None:
        """Plug or pull a node's cable."""
        wiring.set_link(self.spec, self.station(name), up=up)

    def _nginx(self, node: Node) -> list[str]:
        folder = self.folder(node.name)
        return ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]

    def tcp_counter(self, name: str, counter: str) -> int:
        """Return a TCP counter of a node's kernel, such as OutRsts (RFC 4022, tcpOutRsts)."""
        with netns.entered(self.node(name).namespace):
            # not /proc/net, which is that of the process's first thread
            text = Path("/proc/thread-self/net/snmp").read_text()
        names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(values[names.index(counter)])

    # etcd and agents

    def etcdctl(self, *arguments: str) -> str:
        """Run etcdctl on the control node, for all members of etcd, and return its output.

        Raises:
            LabError: it failed.
        """
        endpoints = ",".join(etcd_endpoints(self.stations.values()))
        command = ["etcdctl", f"--endpoints={endpoints}", *arguments]
        return self.nodes[CONTROL].run(command).stdout

    def start_etcd(self, name: str = CONTROL) -> None:
        """Start a node's member of etcd, at first or again; it may take another to be healthy."""
        members = [self.stations[node.name] for node in self._of(Role.CONTROL)]
        member = services.start_etcd(self.node(name), members, self.folder(name))
        self.etcds[name] = member
        self._children.append(member)

    def wait_for_etcd(self, name: str = CONTROL) -> None:
        """Return when a node's member of etcd is healthy.

        Raises:
            LabError: it ended, or is not healthy in time.
        """
        log = self.folder(name) / "etcd.log"
        services.wait_for_etcd(self.node(name), self.etcds[name], log)

    def start_agent(self, lb: str = "lb1", config: Path | None = None) -> AgentProcess:
        """Start the agent on an LB host, on the lab's file for it unless another is given.

        Returns at once: what the agent has done is in its status key.
        """
        file = config or agents.config_path(self.spec, lb)
        agent = AgentProcess.start(self.node(lb), file, agents.log_path(self.spec, lb))
        self.agents[lb] = agent
        return agent

    def status(self) -> dict[str, Any]:
        """Return what the lab consists of and what runs where, as JSON-ready values."""
        running: dict[str, list[dict[str, Any]]] = {name: [] for name in self.nodes}
        for pid, namespace in sorted(netns.processes(netns.named(self.spec.prefix)).items()):
            name = namespace.removeprefix(self.spec.prefix)
            running.setdefault(name, []).append({"pid": pid, "command": _command(pid)})
        return {
            "name": self.spec.name,
            "folder": str(self.spec.folder),
            "vips": [str(vip) for vip in self._vips],
            "nodes": [
                {
                    "name": name,
                    "namespace": node.namespace,
                    "exists": (NETNS_ROOT / node.namespace).exists(),
                    "addresses": self._addresses(name),
                    "processes": running[name],
                }
                for name, node in self.nodes.items()
            ],
        }

    def _addresses(self, name: str) -> list[str]:
        station = self.stations.get(name)
        if station is None:
            return []
        return [
            str(f(host)) for host in station.hosts for f in (station.address4, station.address6)
        ]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()
