"""``up`` and ``down`` of the whole sandbox: control plane, simulated AKS, node agent, CRDs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaito.sandbox import lifecycle
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane
from kaito.sandbox.plan import DATA
from kaito.sandbox.processes import Identity, identity, wait_gone

pytestmark = pytest.mark.controlplane

BOUND = """
import os, signal, sys
from pathlib import Path
from kaito.sandbox import lifecycle
lifecycle.up(Path(sys.argv[1]), environ=os.environ, parent_bound=True, progress=lambda text: None)
print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "sandbox"
    lifecycle.down(tmp_path / "sandbox")


def kubectl(exports: dict[str, str], *arguments: str) -> str:
    program = ensure(os.environ, progress=print).kubectl
    environ = {**os.environ, **exports}
    return subprocess.run(
        [program, *arguments], env=environ, capture_output=True, check=True, text=True
    ).stdout


def ask(url: str, method: str = "GET") -> dict[str, object]:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as answer:
        return json.load(answer)


def children(of: Identity) -> list[Identity]:
    pids = Path(f"/proc/{of.pid}/task/{of.pid}/children").read_text().split()
    found = [identity(int(pid)) for pid in pids]
    return [child for child in found if child is not None]


def test_up_gives_what_kubectl_and_the_operator_need_and_down_takes_it_all(folder: Path) -> None:
    said: list[str] = []
    exports = dict(lifecycle.up(folder, environ=os.environ, audit=True, progress=said.append))
    assert said[-1] == "starting the simulated AKS and the node agent"
    assert "KIND:       Workspace" in kubectl(exports, "explain", "workspace")
    assert "workspaces.kaito.sh" in kubectl(exports, "get", "crd", "-o", "name")
    assert exports["KAITO_LAUNCH_RETRY_MAX"] == "3"
    assert ask(f"{exports['AZURE_RESOURCE_MANAGER_URL']}/sandbox/ledger")["live"] == 0

    # A second one finds the first.
    state = lifecycle.status(folder)
    assert state is not None
    path = exports.pop("PATH", None)
    assert lifecycle.up(folder, environ={}, progress=said.append) == exports
    if path is not None:  # where the machine's own kubectl does not fit
        assert kubectl({"PATH": path}, "version", "--client").startswith("Client Version: v1.34")

    programs = children(state.supervisor)
    assert len(programs) == 4
    assert lifecycle.down(folder) is True
    assert [wait_gone(process, 0) for process in (*programs, state.supervisor)] == [True] * 5
    assert not (folder / DATA).exists()
    assert lifecycle.status(folder) is None
    assert lifecycle.down(folder) is False


def test_a_bound_sandbox_ends_with_its_starter(folder: Path) -> None:
    """The demo is killed: nothing of its sandbox is left, its data neither."""
    with subprocess.Popen(
        [sys.executable, "-c", BOUND, str(folder)], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        state = lifecycle.status(folder)
        assert state is not None
        programs = children(state.supervisor)
        starter.kill()
    for process in (*programs, state.supervisor):
        assert wait_gone(process, 20)
    assert not (folder / DATA).exists()


def test_a_cluster_that_is_there_can_be_used_and_is_left_clean(
    folder: Path, control_plane: ControlPlane
) -> None:
    exports = dict(
        lifecycle.up(
            folder, environ=os.environ, kubeconfig=control_plane.kubeconfig, progress=lambda _: None
        )
    )
    assert exports["KUBECONFIG"] == str(control_plane.kubeconfig)
    script = {
        "latency": {"join": 0, "ready": 0},
        "spare": [{"name": "spare-1", "vm_size": "Standard_NC6s_v3"}],
    }
    url = f"{exports['AZURE_RESOURCE_MANAGER_URL']}/sandbox/script"
    request = urllib.request.Request(url, json.dumps(script).encode(), method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    kubectl(exports, "wait", "--for=create", "node/spare-1", "--timeout=20s")
    kubectl(exports, "wait", "--for=condition=Ready", "node/spare-1", "--timeout=20s")
    ask(f"{exports['AZURE_RESOURCE_MANAGER_URL']}/sandbox/nodes/spare-1/fail", "POST")
    assert lifecycle.down(folder)
    control_plane.require_running()
    assert "spare-1" not in kubectl(exports, "get", "nodes", "-o", "name")


def test_a_real_aks_cluster_is_refused(folder: Path, control_plane: ControlPlane) -> None:
    """Its Nodes have the same labels: the agent would answer for them."""
    exports = {"KUBECONFIG": str(control_plane.kubeconfig)}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "real-1", "labels": {"kubernetes.azure.com/agentpool": "prod"}},
    }
    manifest = folder.parent / "node.json"
    manifest.write_text(json.dumps(node))
    kubectl(exports, "create", "-f", str(manifest))
    try:
        with pytest.raises(lifecycle.SandboxError, match="real-1 is a real AKS node"):
            lifecycle.up(
                folder,
                environ=os.environ,
                kubeconfig=control_plane.kubeconfig,
                progress=lambda _: None,
            )
    finally:
        kubectl(exports, "delete", "node", "real-1")
