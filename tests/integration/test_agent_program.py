# SPDX-License-Identifier: Apache-2.0
"""A program that cannot be built: the agent refuses the change, and takes it when it can."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tidegate.bpf

import tidegate
from tidegate.lab.control import Control, StatusWatch
from tidegate.lab.rack import Lab

pytestmark = [pytest.mark.root, pytest.mark.lab(backends=1)]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a copy of the package that agents run from, whose C a test may break."""
    copy = tmp_path / "tidegate"
    shutil.copytree(Path(tidegate.__path__[0]), copy)
    shutil.copytree(Path(tidegate.bpf.__path__[0]), copy / "bpf", symlinks=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return copy


def _refuses(status: dict[str, Any], revision: int) -> bool:
    return any(each["revision"] >= revision for each in status["refusals"])


def test_a_program_that_does_not_compile_is_a_refusal(bare_lab: Lab, package: Path) -> None:
    """The status names the step and the compiler's words, and the last generation stays.

    Also where the compiler itself dies, as bcc 0.26 does of an error in syntax.
    """
    control = Control(bare_lab)
    control.put("pools/web", {})
    control.put("pools/web/backends/b1", {"address": str(bare_lab.address("b1"))})
    vip = {"address": str(bare_lab.vip4()), "port": 80, "protocol": "tcp", "pool": "web"}
    first = control.put("vips/web", vip)
    header = package / "bpf" / "quic.h"
    whole = header.read_text()
    with StatusWatch(bare_lab, "lb1") as status:
        bare_lab.start_agent("lb1")
        before = status.wait_applied(first.revision, timeout=30).status
        quic = {**vip, "port": 443, "protocol": "udp", "quic": {"server_id_length": 8}}
        for broken in (
            whole.replace("quic_servers.lookup", "no_such_function"),
            whole.replace("#pragma once", "#pragma once\nno type at all\n"),
        ):
            header.write_text(broken)
            written = control.put("vips/quic", quic)
            refused = status.wait(
                "a refusal", lambda s, r=written.revision: _refuses(s, r), timeout=40
            ).status
            assert refused["generation"] == before["generation"]
            assert refused["digest"] == before["digest"]
            assert refused["state"] == "degraded"
            assert [each["stage"] for each in refused["refusals"]] == ["build"]
            assert "balancer.c does not compile" in refused["refusals"][0]["reason"]
            assert "quic.h" in refused["refusals"][0]["reason"]
            quic["port"] += 1
        assert "ended by a signal" in refused["refusals"][0]["reason"]
        url = f"http://{bare_lab.vip4()}/"
        curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "3", url]
        assert bare_lab.client(1).run(curl).stdout.strip() == "b1"
        header.write_text(whole)
        healed = status.wait(
            "synced", lambda s: s["state"] == "synced" and s["revision"] >= written.revision, 40
        ).status
        assert healed["generation"] > before["generation"]
