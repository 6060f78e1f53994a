"""The idle operator, as a pod would run it: resident memory and CPU over a minute.

In-cluster configuration (service-account folder as a setting), rights from ``deploy/``, a real API
server, the simulated AKS, nothing to do.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Measure
from tests.e2e.driver import Sandbox, start_sandbox, stop_sandbox

ROOT = Path(__file__).parent.parent
NAMESPACE = "kaito-system"
WATCHED_SECONDS = 60.0
SETTLE_SECONDS = 10.0


def measure() -> Iterator[Measure]:
    """Both controllers, then the Workspace side alone."""
    with tempfile.TemporaryDirectory(prefix="kaito-bench-") as name:
        directory = Path(name)
        sandbox = start_sandbox(directory / "sandbox")
        try:
            sandbox.kubectl("apply", "-k", str(ROOT / "deploy"))
            bind_both(sandbox, "kaito-both")
            for controllers, account, memory_bar in (
                ("workspace,machine", "kaito-both", "<= 100"),
                ("workspace", "kaito-workspace", "<= 60"),
            ):
                env = sandbox.pod_environment(account, NAMESPACE, directory / account)
                with ready_operator(sandbox, env, controllers) as pid:
                    yield from watch(pid, f"idle, {controllers}", memory_bar)
        finally:
            stop_sandbox(directory / "sandbox")


def bind_both(sandbox: Sandbox, account: str) -> None:
    """One account with the rights of both Deployments, for the process that runs both."""
    sandbox.kubectl("create", "serviceaccount", account, "-n", NAMESPACE)
    subject = f"--serviceaccount={NAMESPACE}:{account}"
    for role in ("kaito-workspace", "kaito-machine"):
        sandbox.kubectl(
            *("create", "clusterrolebinding", f"{account}-{role}"),
            *(f"--clusterrole={role}", subject),
        )
    sandbox.kubectl(
        *("create", "rolebinding", f"{account}-leader-election", "-n", NAMESPACE),
        *("--role=kaito-leader-election", subject),
    )


@contextmanager
def ready_operator(sandbox: Sandbox, env: dict[str, str], controllers: str) -> Iterator[int]:
    """A ready operator; its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = (
        f"--controllers={controllers}",
        f"--health-probe-bind-address=127.0.0.1:{port}",
        "--log-level=warning",
    )
    with sandbox.operator(*flags, env=env) as process:
        sandbox.until("a ready operator", lambda: ready(port))
        yield process.pid


def ready(port: int) -> bool:
    """Does /readyz answer 200?"""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def watch(pid: int, name: str, memory_bar: str) -> Iterator[Measure]:
    """Resident set at the end, CPU in percent of one core over the minute."""
    time.sleep(SETTLE_SECONDS)
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(WATCHED_SECONDS)
    busy = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M).group(1)) / 1024  # type: ignore[union-attr]
    yield Measure(f"{name}: RSS", resident, "MiB", memory_bar)
    yield Measure(f"{name}: CPU over {WATCHED_SECONDS:.0f} s", busy * 100, "% of a core", "<= 0.5")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
