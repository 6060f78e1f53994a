"""``make demo`` as a user meets it: to the end, kept, and cut off at any time."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.driver import KAITO, Sandbox, stop_sandbox

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-demo")]


@contextmanager
def demo(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*KAITO, "sandbox", "demo", "--dir", str(folder), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the demo never said {words!r}:\n{seen}")


def processes_of(folder: Path) -> list[str]:
    """Command lines of all that names the folder; the operator has it in its variables."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                variables = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command + variables and "pytest" not in command:
                found.append(command)
    return found


def test_the_demo_walks_the_road_and_shows_the_bill(tmp_path: Path) -> None:
    with demo(tmp_path / "s") as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    for phase in ("operator is ready", "VM ordered", "ResourceReady", "InferenceReady", "VM gone"):
        assert re.search(rf"^ +\d+\.\d s   {phase}", out, re.M), f"{phase} is missing:\n{out}"
    assert "$ kubectl get workspace,machine,node,deploy,svc" in out
    assert "VMs created 1, left 0, most at one time 1" in out
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "s").exists()


def test_kept_it_stays_up_and_says_how_to_use_and_end_it(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with demo(folder, "--keep") as process:
        out, _ = process.communicate(timeout=120)
    try:
        assert process.returncode == 0, out
        exports = dict(re.findall(r"^export (\w+)=(.*)$", out, re.M))
        box = Sandbox(folder, exports)
        assert box.condition("workspace-phi-3-mini", "WorkspaceReady")["status"] == "True"
        second = subprocess.run(
            [*KAITO, "sandbox", "demo", "--dir", str(folder)], capture_output=True, text=True
        )
        assert second.returncode == 1
        assert f"kaito sandbox down --dir {folder}" in second.stderr
    finally:
        stop_sandbox(folder)
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("signum", "moment"),
    [
        (signal.SIGINT, "starting etcd"),
        (signal.SIGINT, "operator is ready"),
        (signal.SIGINT, "VM ordered"),
        (signal.SIGTERM, "node joined"),
        (signal.SIGINT, "deletion asked for"),
        (signal.SIGKILL, "VM ordered"),
    ],
    ids=lambda value: getattr(value, "name", value).replace(" ", "-"),
)
def test_cut_off_at_any_time_it_leaves_no_process(
    tmp_path: Path, signum: signal.Signals, moment: str
) -> None:
    with demo(tmp_path / "s") as process:
        read_until(process, moment)
        process.send_signal(signum)
        process.communicate(timeout=60)
        if signum is not signal.SIGKILL:
            assert process.returncode == 130
            assert processes_of(tmp_path) == []
            return
        ends = time.monotonic() + 30  # after SIGKILL the sandbox ends by itself
        while processes_of(tmp_path):
            assert time.monotonic() < ends, processes_of(tmp_path)
            time.sleep(0.05)
