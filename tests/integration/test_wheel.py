# SPDX-License-Identifier: Apache-2.0
"""The wheel is complete: it works where the checkout is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tidegate import maglev
from tidegate.lab.agents import config_path
from tidegate.lab.control import StatusWatch
from tidegate.lab.rack import Lab

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that succeeds, run without any path into the checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that no earlier build can leak into it."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in ("agent", "bpf", "schemas", "LICENSES"):
        ignored = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", copy / "out", ".", cwd=copy)
    (built,) = (copy / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty environment that sees the system's packages; give its bin.

    Its dependencies come from the packages that this test runs with, since they are the locked
    ones and a test needs no package index.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", "--system-site-packages", venv, cwd=folder)
    python = venv / "bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours = run(sys.executable, "-c", script, cwd=folder).strip()
    theirs = run(python, "-c", script, cwd=folder).strip()
    # A plain path line: unlike site.addsitedir it does not run the editable checkout's own .pth.
    (Path(theirs) / "locked.pth").write_text(ours + "\n")
    return venv / "bin"


def test_the_wheel_holds_programs_schemas_and_extension(wheel: Path) -> None:
    """Every BPF source and schema of the checkout is in it, and one build of the extension."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    data = [*ROOT.glob("bpf/**/*.[ch]"), *ROOT.glob("schemas/*.json")]
    assert data
    assert {f"tidegate/{path.relative_to(ROOT)}" for path in data} <= inside
    assert "tidegate/maglev/_maglev.abi3.so" in inside
    assert "-cp311-abi3-" in wheel.name


def test_the_wheel_holds_every_package(wheel: Path) -> None:
    """The list of packages in pyproject.toml has forgotten none."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT / "agent")) for path in ROOT.glob("agent/**/*.py")}
    assert modules <= inside


def test_the_installed_command_runs_elsewhere(installed: Path, tmp_path: Path) -> None:
    """`tidegate --version` runs from another folder, out of the installed files."""
    assert run(installed / "tidegate", "--version", cwd=tmp_path) == (
        f"tidegate {version('tidegate')}\n"
    )
    where = "import tidegate, tidegate.maglev._maglev as e; print(tidegate.__file__, e.__file__)"
    for file in run(installed / "python", "-c", where, cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent)


@pytest.mark.root
@pytest.mark.lab(backends=1)
def test_the_installed_agent_loads_the_program_in_the_lab(
    installed: Path, bare_lab: Lab, status: StatusWatch
) -> None:
    """The program is compiled from the wheel's sources and comes onto the load balancer's NIC."""
    lab = bare_lab
    node, config = lab.node("lb1"), config_path(lab.spec, "lb1")
    process = node.popen(
        [str(installed / "tidegate"), "agent", "run", "-c", str(config)], cwd=lab.folder("lb1")
    )
    seen = status.wait("synced", lambda s: s["state"] == "synced", timeout=30)
    assert seen.status["interfaces"] == [{"name": "eth0", "mode": "native"}]
    process.terminate()
    assert process.wait(10) == 0


def test_the_installed_package_builds_the_same_table(installed: Path, tmp_path: Path) -> None:
    """The extension in the wheel builds what the checkout's builds."""
    pool = [(f"backend-{i}", 1 + i % 3) for i in range(20)]
    script = f"from tidegate import maglev; print(maglev.build({pool}).tobytes().hex())"
    table = run(installed / "python", "-c", script, cwd=tmp_path).strip()
    assert table == maglev.build(pool).tobytes().hex()
