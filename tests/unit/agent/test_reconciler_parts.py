# SPDX-License-Identifier: Apache-2.0
"""The agent's small parts: its file, its mailbox, and its messages to the service manager."""

import socket
import threading
import time
from pathlib import Path

import pytest

from support.crash.bench import no_descriptors
from tidegate.agent import config
from tidegate.agent.mailbox import Mailbox, WakeReason
from tidegate.agent.readiness import sd_notify
from tidegate.dataplane.kernel.maps import Capacity
from tidegate.errors import ConfigError
from tidegate.model.values import Snapshot, Steering, View
from tidegate.planner.guards import Limits

GOOD = """\
host = "lb1"
interfaces = ["eth0"]
[encapsulation]
source4 = "10.254.0.0/16"
source6 = "fd54::/64"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "agent.toml"
    path.write_text(text)
    return path


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    """Everything else has a default."""
    found = config.read(written(tmp_path, GOOD))
    assert (found.host, found.fleet, found.release) == ("lb1", "default", "live")
    assert found.xdp_mode == "native"
    assert found.build().hash_seed == b"default"
    assert found.build().capacity == Capacity(1 << 20, 1 << 16, 1 << 14)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("interfaces = [", "is not TOML"),
        (GOOD.replace('["eth0"]', "[]"), "interfaces"),
        (GOOD.replace('["eth0"]', '["eth0", "eth0"]'), "named twice"),
        (GOOD.replace("10.254.0.0/16", "10.254.0.0/99"), "encapsulation.source4"),
        (GOOD.replace("fd54::/64", "fd54::/32"), "encapsulation.source6"),
        (GOOD.replace('host = "lb1"', 'hots = "lb1"'), "hots"),
        (GOOD.replace('"lb1"', '"a/b"'), "host"),
        ('pin_dir = "run"\n' + GOOD, "pin_dir"),
        ('pin_dir = "/sys/fs/bpf/a.b"\n' + GOOD, "dots"),
        ('xdp_mode = "fast"\n' + GOOD, "xdp_mode"),
        (GOOD + "[etcd]\ncert = '/x'\n", "etcd"),
        (GOOD + "[capacity]\nflows = 1\n", "capacity.flows"),
        (GOOD + "[capacity]\nfragments = 1\n", "capacity.fragments"),
        (GOOD + "[capacity]\nevents = 1000000\n", "capacity.events: must be a power of two"),
        (GOOD + "[capacity]\nevents = 4096\n", "capacity.events"),
        (GOOD + "[announce]\ntable = 254\n", "announce.table"),
        (GOOD + "[announce]\nexabgp_pipe = 'pipe'\n", "announce.exabgp_pipe"),
        ('ready_file = "ready"\n' + GOOD, "ready_file"),
    ],
)
def test_a_bad_file_names_its_key(tmp_path: Path, text: str, sentence: str) -> None:
    """The message names the file and the key, and says what is wrong."""
    with pytest.raises(ConfigError, match=sentence) as caught:
        config.read(written(tmp_path, text))
    assert "agent.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The reason is the system's own."""
    with pytest.raises(ConfigError, match=r"nothing\.toml: No such file"):
        config.read(tmp_path / "nothing.toml")


def test_a_reload_takes_what_it_can(tmp_path: Path) -> None:
    """Guards and gateways change while it runs; the host's name does not."""
    before = config.read(written(tmp_path, GOOD))
    after = config.read(
        written(tmp_path, GOOD.replace("lb1", "lb2") + "[guards]\nmax_vips_removed_percent = 9\n")
    )
    changes = config.changes(before, after)
    assert changes == config.Changes(reloadable=("guards",), fixed=("host",))
    merged = config.merged(before, after, changes.reloadable)
    assert (merged.host, merged.limits()) == ("lb1", Limits(50, 9))


def view(revision: int) -> View:
    return View(Steering(revision, "stable", "live"), Snapshot(revision, {}))


def test_only_the_latest_view_is_kept() -> None:
    """A slow loop coalesces, and its mail does not grow."""
    box = Mailbox()
    for revision in range(100):
        box.deliver(view(revision))
    assert box.collect().view == view(99)
    assert box.collect().view is None
    box.close()


def test_no_mail_is_lost_between_threads() -> None:
    """Whatever is delivered last is seen, however the threads interleave."""
    box = Mailbox()
    last = 20_000

    def write() -> None:
        for revision in range(1, last + 1):
            box.deliver(view(revision))
        box.wake(WakeReason.STOP)

    writer = threading.Thread(target=write)
    writer.start()
    seen, stopped = 0, False
    while seen < last or not stopped:
        box.wait(10)
        mail = box.collect()
        if mail.view is not None:
            assert mail.view.snapshot.revision > seen
            seen = mail.view.snapshot.revision
        stopped = stopped or WakeReason.STOP in mail.reasons
    writer.join()
    box.close()


def test_waiting_ends_with_mail_or_time() -> None:
    """A wake-up before the wait is not lost."""
    box = Mailbox()
    box.wake(WakeReason.LINKS)
    start = time.monotonic()
    box.wait(10)
    assert time.monotonic() - start < 5
    assert box.collect().reasons == {WakeReason.LINKS}
    box.wait(0.01)
    assert box.collect().reasons == frozenset()
    box.close()


def test_the_service_manager_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sd_notify over the socket that the environment names."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        sd_notify.notify("READY=1", "STATUS=up")
        assert manager.recv(100) == b"READY=1\nSTATUS=up"
        sd_notify.reloading()
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    sd_notify.notify("READY=1")  # the manager is gone, which is no reason to fail
    monkeypatch.delenv("NOTIFY_SOCKET")
    sd_notify.notify("READY=1")


def test_a_manager_is_notified_without_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is kept: an agent that can open nothing is alive, and says so."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        sd_notify.notify("READY=1")
        with no_descriptors():
            sd_notify.notify("WATCHDOG=1")
        assert manager.recv(100) == b"READY=1"
        manager.settimeout(5)
        assert manager.recv(100) == b"WATCHDOG=1"


def test_the_watchdog_is_fed_twice_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHDOG_USEC is in microseconds."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    assert sd_notify.watchdog_interval() == 10
    monkeypatch.delenv("WATCHDOG_USEC")
    assert sd_notify.watchdog_interval() is None
