"""A real API server with nobody on it but the bench and whom it measures."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench.peers.usage import Usage
from kaito.api.views import decode_metadata
from kaito.clock import SystemClock
from kaito.errors import ApiError
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import from_kubeconfig
from kaito.kube.resources import Kind
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane

_CRDS: Final = Kind(
    *("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    namespaced=False,
    decode=decode_metadata,
)
_BINDINGS: Final = Kind(
    *("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    namespaced=False,
    decode=decode_metadata,
)
_ADMIN: Final[dict[str, Any]] = {
    "apiVersion": _BINDINGS.api_version,
    "kind": _BINDINGS.kind,
    "metadata": {"name": "bench"},
    "roleRef": {"apiGroup": _BINDINGS.group, "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "default"}],
}
_CLIENTS: Final = ("kube-controller", "kube-scheduler")  # as the kernel cuts their names
_CONCURRENCY: Final = 64
_REQUESTS: Final = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_WRITES: Final = ('verb="APPLY"', 'verb="DELETE"', 'verb="PATCH"', 'verb="POST"', 'verb="PUT"')
_OWN: Final = 'resource="leases"'  # the server renews one of its own


class ApiServer:
    """``client``: of an administrator, for the bench itself.

    Whom it measures is the service account ``default``, as a pod would be: ``account`` is what a
    pod has mounted, ``kubeconfig`` the same token and CA for programs that read one. ``address``:
    host and port.
    """

    def __init__(self, plane: ControlPlane, client: KubeClient, kubectl: Path) -> None:
        self.client = client
        self._plane = plane
        self.logs = plane.folder / "logs"
        self.account = plane.service_account_folder("default", "default")
        self.kubeconfig = plane.folder / "account.kubeconfig"
        self.kubeconfig.write_text(_kubeconfig(plane.server, self.account), encoding="utf-8")
        self.address = plane.server.removeprefix("https://").rsplit(":", 1)
        self._raw_command = (str(kubectl), f"--kubeconfig={plane.kubeconfig}")

    async def writes(self) -> int:
        """Mutating requests served so far, refused ones too, by anybody: the server's own count."""
        page = await self._raw("get", "/metrics")
        return sum(
            int(float(count))
            for labels, count in _REQUESTS.findall(page)
            if any(verb in labels for verb in _WRITES) and _OWN not in labels
        )

    def cpu_seconds(self) -> float:
        """Of the API server and its etcd so far."""
        return sum(Usage.of(pid).cpu_seconds for pid in self._plane.pids)

    async def add_kind(self, crd: Mapping[str, Any], kind: Kind[Any]) -> None:
        """Create a CRD and return when its kind is served."""
        await self.client.create(_CRDS, crd)
        while not await self._lists(kind):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)

    async def _lists(self, kind: Kind[Any]) -> bool:
        try:
            await self.client.list(kind)
        except ApiError:  # not served yet, then "storage is (re)initializing"
            return False
        return True

    async def delete_all(self, path: str) -> None:
        """Delete a collection in one request."""
        await self._raw("delete", path)

    async def _raw(self, verb: str, path: str) -> str:
        command = [*self._raw_command, verb, "--raw", path]
        return await asyncio.to_thread(subprocess.check_output, command, text=True)


@asynccontextmanager
async def quiet_api_server() -> AsyncIterator[ApiServer]:
    """Started with all its parts, then left without controller manager and scheduler.

    They would watch and count every object of the bench on the same cores, as noise.
    """
    with tempfile.TemporaryDirectory(prefix="kaito-bench-") as name:
        binaries = ensure(os.environ, progress=print)
        plane = ControlPlane(Path(name), binaries=binaries)
        await plane.start()
        try:
            _leave_alone(plane)
            client = await connect(
                await from_kubeconfig(plane.kubeconfig), clock=SystemClock(), component="bench"
            )
            try:
                await client.create(_BINDINGS, _ADMIN)
                yield ApiServer(plane, client, binaries.kubectl)
            finally:
                await client.close()
        finally:
            await plane.stop()


def _kubeconfig(server: str, account: Path) -> str:
    """One whose user is the account. JSON, which is YAML too."""
    cluster = {"server": server, "certificate-authority": str(account / "ca.crt")}
    user = {"token": (account / "token").read_text(encoding="ascii").strip()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": cluster}],
        "users": [{"name": "bench", "user": user}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "current-context": "bench",
    }
    return json.dumps(config)


def _leave_alone(plane: ControlPlane) -> None:
    for pid in plane.pids:
        if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() in _CLIENTS:
            os.kill(pid, signal.SIGTERM)


async def in_parallel(
    call: Callable[[dict[str, Any]], Awaitable[object]], manifests: Iterable[dict[str, Any]]
) -> None:
    """Call for each, 64 at a time."""
    waiting = iter(manifests)

    async def work() -> None:
        for manifest in waiting:
            await call(manifest)

    async with asyncio.TaskGroup() as group:
        for _ in range(_CONCURRENCY):
            group.create_task(work())
