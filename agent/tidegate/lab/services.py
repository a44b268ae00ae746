# SPDX-License-Identifier: Apache-2.0
"""The real servers of the rack: etcd on the control node, nginx and a UDP echo on each backend.

This module writes their configuration, starts them and waits until they answer. It does not end
them: whatever runs in the lab's namespaces is ended there.
"""

import http.client
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tidegate.errors import CapabilityError, LabError
from tidegate.lab import echo, netns
from tidegate.lab.plan import ECHO_PORT, ETCD_PEER_PORT, ETCD_PORT, HTTP_PORT, Station
from tidegate.lab.processes import Node

if TYPE_CHECKING:
    import subprocess

START_TIMEOUT: Final = 15.0
"""Seconds within which a server must answer."""

DOWNLOAD_LINES: Final = 2_000
DOWNLOAD_LINE_BYTES: Final = 512
"""Long lines, because a client that checks many short ones has no time for anything else."""
DOWNLOAD_RATE: Final = "8k"
"""At 8 KB/s the megabyte takes two minutes, which outlasts any demo and costs next to nothing."""

_PACKAGES: Final = {
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "nginx": "nginx-light",
}
_NGINX: Final = """\
user nobody nogroup;
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    scgi_temp_path {folder}/scgi;
    uwsgi_temp_path {folder}/uwsgi;
    default_type text/plain;
    sendfile on;
    keepalive_timeout 120s;
    server {{
{listens}
        location = / {{ return 200 "{name}\\n"; }}
        location = /download {{ alias {folder}/download; limit_rate {rate}; }}
        location = /bulk {{ alias {folder}/download; }}
    }}
}}
"""


def require_programs() -> None:
    """Check that the servers are installed.

    Raises:
        CapabilityError: names what is missing and the Debian packages that have it.
    """
    missing = {name: package for name, package in _PACKAGES.items() if not shutil.which(name)}
    if missing:
        raise CapabilityError(
            f"the lab needs {', '.join(missing)}: apt-get install {' '.join(missing.values())} "
            "(or another build of it in PATH)"
        )


def etcd_peers(members: Sequence[Station]) -> str:
    """Return name and peer URL of each member, as etcd's --initial-cluster has them."""
    return ",".join(f"{member.name}={_etcd_peer(member)}" for member in members)


def _etcd_peer(member: Station) -> str:
    return f"http://{member.address4()}:{ETCD_PEER_PORT}"


def start_etcd(node: Node, members: Sequence[Station], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a member of etcd, on its node's loopback and link, without waiting for it.

    Durability is not what the lab shows, so etcd need not wait for the disk. A member that was
    killed goes on with the data that it left.
    """
    (folder / "etcd").mkdir(mode=0o700, exist_ok=True)
    member = next(one for one in members if one.name == node.name)
    link = f"http://{member.address4()}:{ETCD_PORT}"
    peer = _etcd_peer(member)
    return node.daemon(
        [
            "etcd",
            f"--name={node.name}",
            f"--data-dir={folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{ETCD_PORT},{link}",
            f"--advertise-client-urls={link}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={etcd_peers(members)}",
        ],
        folder / "etcd.log",
    )


def wait_for_etcd(node: Node, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until etcd says that it is healthy.

    Raises:
        LabError: it ended, or did not become healthy in time; the text has its last lines.
    """

    def healthy() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", ETCD_PORT, timeout=2)
        with netns.entered(node.namespace):
            connection.connect()
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        finally:
            connection.close()

    _wait(healthy, "etcd", process, log)


def write_nginx(folder: Path, name: str, vips: Iterable[IPv4Address | IPv6Address]) -> Path:
    """Write a backend's nginx configuration and, once, the file for long downloads.

    Every line of the download has the backend's name and a number, so a client sees whether it
    comes from one backend and whether anything is missing.
    """
    listens = "\n".join(
        f"        listen {vip}:{HTTP_PORT};"
        if isinstance(vip, IPv4Address)
        else f"        listen [{vip}]:{HTTP_PORT} ipv6only=on;"
        for vip in vips
    )
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, name=name, listens=listens, rate=DOWNLOAD_RATE))
    download = folder / "download"
    if not download.exists():
        width = DOWNLOAD_LINE_BYTES - 1
        lines = (f"{name} {line:08d} ".ljust(width, ".") for line in range(DOWNLOAD_LINES))
        download.write_text("".join(f"{line}\n" for line in lines))
    return file


def start_nginx(node: Node, folder: Path) -> "subprocess.Popen[bytes]":
    """Start nginx on the configuration in its folder, without waiting for it."""
    command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    return node.daemon([*command, "-e", str(folder / "nginx-error.log")], folder / "nginx.log")


def start_echo(node: Node) -> "subprocess.Popen[bytes]":
    """Start the UDP echo server, without waiting for it."""
    # -I and -S: it needs nothing but the standard library, and starts in half the time.
    command = [sys.executable, "-I", "-S", echo.__file__, node.name, str(ECHO_PORT)]
    return node.daemon(command, Path("/dev/null"))


def wait_for_http(
    node: Node,
    vip: IPv4Address | IPv6Address,
    process: "subprocess.Popen[bytes] | None",
    log: Path,
) -> None:
    """Wait until a backend's nginx answers on a VIP in its own namespace.

    Raises:
        LabError: it ended, or does not answer in time.
    """

    def answers() -> bool:
        connection = http.client.HTTPConnection(str(vip), HTTP_PORT, timeout=2)
        with netns.entered(node.namespace):
            connection.connect()
        try:
            connection.request("GET", "/")
            return connection.getresponse().read() == f"{node.name}\n".encode()
        finally:
            connection.close()

    _wait(answers, f"nginx of {node.name}", process, log)


def wait_for_echo(node: Node, process: "subprocess.Popen[bytes] | None") -> None:
    """Wait until a backend's echo server answers in its own namespace.

    Raises:
        LabError: it ended, or does not answer in time.
    """

    def answers() -> bool:
        with netns.entered(node.namespace):
            client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with client:
            client.settimeout(0.5)
            client.connect(("::1", ECHO_PORT))
            client.send(b"?")
            return client.recv(64).startswith(node.name.encode())

    _wait(answers, f"echo server of {node.name}", process, Path("/dev/null"))


def _wait(
    answers: Callable[[], bool],
    what: str,
    process: "subprocess.Popen[bytes] | None",
    log: Path,
) -> None:
    """Poll a starting server: it has no event to wait for."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            if answers():
                return
        except (OSError, http.client.HTTPException):
            pass
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()[-5:] if log.is_file() else []
            raise LabError(
                f"{what} {'ended at once' if ended else 'does not answer'}; {log} ends with: "
                + " | ".join(lines)
            )
        time.sleep(0.01)
