"""The sandbox and the operator as a user has them: processes, and kubectl. Used by bench/ too."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

KAITO = (sys.executable, "-m", "kaito")
PATIENCE = 90.0


class Sandbox:
    """A running sandbox: its variables, kubectl, the ledger and the script."""

    def __init__(self, directory: Path, exports: dict[str, str]) -> None:
        self.directory = directory
        self.exports = exports
        self.env = {**os.environ, **exports}

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            [self.exports.get("KUBECTL", "kubectl"), *args],
            input=stdin,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def get(self, *args: str) -> dict[str, Any]:
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        """The condition, or {} when the Workspace or the condition is not there."""
        text = self.kubectl("get", "workspace", name, "-o", "json", "--ignore-not-found")
        conditions = json.loads(text or "{}").get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})

    def _http(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.exports["AZURE_RESOURCE_MANAGER_URL"] + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def ledger(self) -> dict[str, Any]:
        return self._http("GET", "/sandbox/ledger")

    def script(self, **script: Any) -> None:
        quick = {"create": 0.5, "join": 0.3, "ready": 0.3, "delete": 0.3, "pod": 0.2}
        self._http("PUT", "/sandbox/script", {"latency": quick, **script})

    def until(self, what: str, probe: Any, patience: float = PATIENCE) -> Any:
        """Ask until the answer is truthy. A person would do the same, with watch."""
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            if answer := probe():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"not seen within {patience} s: {what}\n{self.story()}")

    def story(self) -> str:
        logs = "".join(p.read_text()[-4000:] for p in self.directory.glob("operator*.log"))
        return self.kubectl("get", "workspace,machine,node", "-o", "yaml", check=False) + logs

    def pod_environment(self, account: str, namespace: str, folder: Path) -> dict[str, str]:
        """What a pod of this account would have: the folder with its token, host and port."""
        folder.mkdir()
        config = yaml.safe_load(Path(self.exports["KUBECONFIG"]).read_text(encoding="utf-8"))
        cluster = config["clusters"][0]["cluster"]
        if ca := cluster.get("certificate-authority-data"):
            (folder / "ca.crt").write_bytes(base64.b64decode(ca))
        else:
            (folder / "ca.crt").write_bytes(Path(cluster["certificate-authority"]).read_bytes())
        (folder / "namespace").write_text(namespace)
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=1h")
        (folder / "token").write_text(token)
        server = urlsplit(cluster["server"])
        return {
            **{k: v for k, v in self.env.items() if k != "KUBECONFIG"},
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(server.port),
            "KAITO_SERVICE_ACCOUNT_DIR": str(folder),
        }

    @contextlib.contextmanager
    def operator(
        self, *flags: str, env: dict[str, str] | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        process = self.start_operator(*flags, env=env)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=40)

    def start_operator(
        self, *flags: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.directory / "operator.log").open("ab") as log:
            return subprocess.Popen(
                [
                    *KAITO,
                    "operator",
                    "--metrics-bind-address=0",
                    "--health-probe-bind-address=0",
                    *flags,
                ],
                env=env or self.env,
                stdout=log,
                stderr=log,
            )

    def settled_without_vms(self) -> None:
        self.until("no VM left", lambda: self.ledger()["live"] == 0)
        self.until("no Machine left", lambda: not self.get("machines")["items"])
        self.until("no Node left", lambda: not self.get("nodes")["items"])


def start_sandbox(directory: Path) -> Sandbox:
    up = subprocess.run(
        [*KAITO, "sandbox", "up", "--dir", str(directory)], capture_output=True, text=True
    )
    assert up.returncode == 0, up.stderr
    exports = dict(re.findall(r"^export (\w+)=(.*)$", up.stdout, re.M))
    return Sandbox(directory, exports)


def stop_sandbox(directory: Path) -> None:
    subprocess.run([*KAITO, "sandbox", "down", "--dir", str(directory)], check=True)


def workspace(name: str, **changes: Any) -> str:
    """A phi-3 Workspace as JSON; ``changes`` replace whole top-level fields."""
    manifest = {
        "apiVersion": "kaito.sh/v1alpha1",
        "kind": "Workspace",
        "metadata": {"name": name},
        "resource": {
            "instanceType": "Standard_NC6s_v3",
            "labelSelector": {"matchLabels": {"apps": name}},
        },
        "inference": {"preset": {"name": "phi-3-mini-128k-instruct"}},
    }
    return json.dumps({**manifest, **changes})
