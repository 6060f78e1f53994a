"""The control plane of the sandbox: real programs, real certificates, real RBAC."""

from __future__ import annotations

import http.client
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kaito.sandbox.binaries import Binaries, ensure
from kaito.sandbox.controlplane import ControlPlane
from kaito.sandbox.errors import ProgramFailed
from kaito.sandbox.processes import Identity, identity, wait_gone

pytestmark = pytest.mark.controlplane

STARTER = """
import asyncio, os, signal, sys
from pathlib import Path
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane
plane = ControlPlane(Path(sys.argv[1]), binaries=ensure(os.environ, progress=print))
asyncio.run(plane.start())
print(*plane.pids, flush=True)
signal.pause()
"""


@pytest.fixture(scope="session")
def programs() -> Binaries:
    return ensure(os.environ, progress=print)


def get(plane: ControlPlane, path: str, token: str | None = None) -> int:
    """Status of one request that shows no certificate."""
    context = ssl.create_default_context(cafile=str(plane.ca_file))
    connection = http.client.HTTPSConnection(urlsplit(plane.server).netloc, context=context)
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
    status = connection.getresponse().status
    connection.close()
    return status


def kubectl(plane: ControlPlane, programs: Binaries, *arguments: str) -> str:
    return subprocess.run(
        [programs.kubectl, "--kubeconfig", plane.kubeconfig, *arguments],
        capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip


def test_it_is_ready_when_start_returns(control_plane: ControlPlane, programs: Binaries) -> None:
    control_plane.require_running()
    assert get(control_plane, "/readyz") == 200
    # A pod can be made: admission has the service account it asks for.
    kubectl(control_plane, programs, "run", "first", "--image=none", "--restart=Never")
    kubectl(control_plane, programs, "delete", "pod", "first", "--wait=false")


def test_who_has_no_right_is_refused(control_plane: ControlPlane) -> None:
    """Authentication and RBAC are real: known, unknown and no identity differ."""
    folder = control_plane.service_account_folder("default", "default")
    token = (folder / "token").read_text()
    assert get(control_plane, "/api", token) == 200
    assert get(control_plane, "/api/v1/secrets", token) == 403
    assert get(control_plane, "/api/v1/secrets", "invented") == 401
    assert get(control_plane, "/api/v1/secrets") == 403


def test_a_service_account_folder_is_what_a_pod_sees(control_plane: ControlPlane) -> None:
    folder = control_plane.service_account_folder("kube-system", "default")
    assert {path.name for path in folder.iterdir()} == {"token", "ca.crt", "namespace"}
    assert (folder / "namespace").read_text() == "kube-system"
    assert (folder / "ca.crt").read_bytes() == control_plane.ca_file.read_bytes()


def test_no_token_without_a_service_account(control_plane: ControlPlane) -> None:
    with pytest.raises(ProgramFailed, match=r'(?s)default/nobody.*"nobody\\" not found'):
        control_plane.service_account_folder("default", "nobody")


def test_requests_are_in_the_audit_log_when_asked_for(control_plane: ControlPlane) -> None:
    assert '"auditID"' in control_plane.audit_log.read_text()


async def test_a_program_that_cannot_start_is_named_and_the_others_are_stopped(
    programs: Binaries, tmp_path: Path
) -> None:
    broken = tmp_path / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    others = (programs.controller_manager, programs.scheduler, programs.kubectl)
    plane = ControlPlane(tmp_path / "d", binaries=Binaries(programs.etcd, broken, *others))
    with pytest.raises(ProgramFailed, match=r"(?s)apiserver ended \(exit code 1\).*no such flag"):
        await plane.start()
    assert plane.pids == ()


async def test_a_program_that_is_never_ready_is_given_up(
    programs: Binaries, tmp_path: Path
) -> None:
    hung = tmp_path / "etcd"
    hung.write_text("#!/bin/sh\necho thinking\nexec sleep 600\n")
    hung.chmod(hung.stat().st_mode | stat.S_IXUSR)
    others = (programs.controller_manager, programs.scheduler, programs.kubectl)
    binaries = Binaries(hung, programs.apiserver, *others)
    plane = ControlPlane(tmp_path / "d", binaries=binaries, start_seconds=0.3)
    with pytest.raises(ProgramFailed, match=r"(?s)not ready within.*etcd.log.*thinking"):
        await plane.start()
    assert plane.pids == ()


async def test_it_outlives_a_restart_of_its_api_server_and_tells_when_one_ends(
    programs: Binaries, tmp_path: Path
) -> None:
    plane = ControlPlane(tmp_path, binaries=programs)
    await plane.start()
    try:
        server = plane.server
        await plane.restart_apiserver()
        assert plane.server == server
        assert get(plane, "/readyz") == 200
        plane.kill_apiserver()
        with pytest.raises(ExceptionGroup) as caught:
            await plane.guard()
        assert caught.group_contains(ProgramFailed, match="apiserver ended")
    finally:
        await plane.stop()
    assert plane.pids == ()


def test_no_program_outlives_a_killed_parent(programs: Binaries, tmp_path: Path) -> None:
    """Issue 10: no orphan after SIGKILL of the parent; here with all four programs."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [identity(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 4
    for child in children:
        assert isinstance(child, Identity)
        assert wait_gone(child, 10)
