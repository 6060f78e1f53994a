"""The idle operator, as a pod would run it: resident memory and CPU over a minute.

In-cluster configuration (service-account folder as a setting), rights from ``deploy/``, a real API
server, the simulated AKS, nothing to do.
"""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from bench.measure import Measure

ROOT = Path(__file__).parent.parent
KAITO = (sys.executable, "-m", "kaito")
NAMESPACE = "kaito-workspace"
WATCHED_SECONDS = 60.0
SETTLE_SECONDS = 10.0


def measure() -> Iterator[Measure]:
    """Both controllers, then the Workspace side alone."""
    with tempfile.TemporaryDirectory(prefix="kaito-bench-") as name:
        directory = Path(name)
        up = subprocess.run(
            [*KAITO, "sandbox", "up", "--dir", str(directory / "sandbox")],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        exports = dict(re.findall(r"^export (\w+)=(.*)$", up.stdout, re.M))
        try:
            kubectl(exports, "apply", "-k", str(ROOT / "deploy"))
            for controllers, account, memory_bar, cpu_bar in (
                ("workspace,machine", "kaito-sandbox-bench", "<= 100", "<= 0.5"),
                ("workspace", "kaito-workspace", "<= 60", ""),
            ):
                if account == "kaito-sandbox-bench":
                    bind_both(exports, account)
                env = in_cluster(exports, account, directory / account)
                with operator(env, controllers) as pid:
                    yield from watch(pid, f"idle, {controllers}", memory_bar, cpu_bar)
        finally:
            subprocess.run(
                [*KAITO, "sandbox", "down", "--dir", str(directory / "sandbox")], check=True
            )


def kubectl(exports: Mapping[str, str], *args: str) -> str:
    """Run kubectl on the sandbox; its output."""
    return subprocess.run(
        ["kubectl", *args],
        env={**os.environ, **exports},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def bind_both(exports: Mapping[str, str], account: str) -> None:
    """One account with the rights of both Deployments, for the process that runs both."""
    kubectl(exports, "create", "serviceaccount", account, "-n", NAMESPACE)
    for role in ("kaito-workspace", "kaito-machine"):
        subject = f"--serviceaccount={NAMESPACE}:{account}"
        kubectl(
            exports,
            "create",
            "clusterrolebinding",
            f"{account}-{role}",
            f"--clusterrole={role}",
            subject,
        )
        kubectl(
            exports,
            "create",
            "rolebinding",
            f"{account}-{role}",
            "-n",
            NAMESPACE,
            f"--role={role}",
            subject,
        )


def in_cluster(exports: Mapping[str, str], account: str, folder: Path) -> dict[str, str]:
    """The folder and variables that a pod of this account has."""
    folder.mkdir()
    config = yaml.safe_load(Path(exports["KUBECONFIG"]).read_text(encoding="utf-8"))
    cluster = config["clusters"][0]["cluster"]
    ca = cluster.get("certificate-authority-data")
    ca_bytes = base64.b64decode(ca) if ca else Path(cluster["certificate-authority"]).read_bytes()
    (folder / "ca.crt").write_bytes(ca_bytes)
    (folder / "namespace").write_text(NAMESPACE)
    token = kubectl(exports, "create", "token", account, "-n", NAMESPACE, "--duration=1h")
    (folder / "token").write_text(token)
    server = urlsplit(cluster["server"])
    rest = {k: v for k, v in exports.items() if k != "KUBECONFIG"}
    return {
        **os.environ,
        **rest,
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
        "KAITO_SERVICE_ACCOUNT_DIR": str(folder),
    }


@contextmanager
def operator(env: Mapping[str, str], controllers: str) -> Iterator[int]:
    """A ready operator; its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *KAITO,
            "operator",
            f"--controllers={controllers}",
            "--metrics-bind-address=127.0.0.1:0",
            f"--health-probe-bind-address=127.0.0.1:{port}",
            "--log-level=warning",
        ],
        env=dict(env),
    )
    try:
        ends = time.monotonic() + 60
        while not ready(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"the operator ({controllers}) did not become ready")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)


def ready(port: int) -> bool:
    """Does /readyz answer 200?"""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def watch(pid: int, name: str, memory_bar: str, cpu_bar: str) -> Iterator[Measure]:
    """Resident set at the end, CPU in percent of one core over the minute."""
    time.sleep(SETTLE_SECONDS)
    before, began = cpu_seconds(pid), time.monotonic()
    time.sleep(WATCHED_SECONDS)
    busy = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    resident = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.M).group(1)) / 1024  # type: ignore[union-attr]
    yield Measure(f"{name}: RSS", resident, "MiB", memory_bar)
    yield Measure(f"{name}: CPU over {WATCHED_SECONDS:.0f} s", busy * 100, "% of a core", cpu_bar)


def cpu_seconds(pid: int) -> float:
    """User and system time of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
