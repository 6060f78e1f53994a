"""The program in docs/framework.md, run as it stands there."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.informers.informer import InformerSet
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.controlplane import ControlPlane
from tests.fakes.mutation import WatchedInformerSet

pytestmark = pytest.mark.controlplane

GUIDE = Path(__file__).parents[2] / "docs" / "framework.md"
CRDS = Kind(
    *("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    namespaced=False,
    decode=decode_owned,
)
GREETINGS = Kind("example.org", "v1", "Greeting", "greetings", True, decode_owned)
CONFIGMAPS = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
LEASES = Kind("coordination.k8s.io", "v1", "Lease", "leases", True, decode_owned)
ANY = {"type": "object", "additionalProperties": {"type": "string"}}
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "greetings.example.org"},
    "spec": {
        "group": "example.org",
        "scope": "Namespaced",
        "names": {"plural": "greetings", "singular": "greeting", "kind": "Greeting"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": ANY, "status": ANY},
                    }
                },
            }
        ],
    },
}


def program() -> str:
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_program_has_forty_lines() -> None:
    """Issue 11: without blank lines and comments."""
    lines = [line.strip() for line in program().splitlines()]
    assert len([line for line in lines if line and not line.startswith("#")]) <= 40


class Seen:
    """Objects of one name, as the watches bring them: the program is another process."""

    def __init__(self, informers: InformerSet) -> None:
        self._informers = informers
        self._changed = asyncio.Event()

    async def until(self, kind: Kind[Owned], name: str, holds: Callable[[Any], bool]) -> Owned:
        informer = self._informers.informer(kind)
        informer.add_handler(lambda _change: self._changed.set())
        namespace = "default" if kind.namespaced else ""
        async with asyncio.timeout(60):
            while (found := informer.lister.get(namespace, name)) is None or not holds(found.body):
                self._changed.clear()
                await self._changed.wait()
        return found


@pytest.fixture
async def seen(real_kube: KubeClient) -> AsyncIterator[Seen]:
    informers = WatchedInformerSet(real_kube, clock=SystemClock())
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(informers.run())
        seen = Seen(informers)
        await real_kube.create(CRDS, CRD)
        await seen.until(CRDS, "greetings.example.org", is_established)
        yield seen
        await real_kube.delete(CRDS, "", "greetings.example.org")
        watching.cancel()


def is_established(crd: Any) -> bool:
    conditions = crd.get("status", {}).get("conditions", ())
    return any((c["type"], c["status"]) == ("Established", "True") for c in conditions)


async def test_the_program_does_what_the_guide_says(
    real_kube: KubeClient, seen: Seen, control_plane: ControlPlane, tmp_path: Path
) -> None:
    """E19, M6: child and status appear and follow; a stop is clean and gives the Lease up."""
    script = tmp_path / "greeter.py"
    script.write_text(program())
    environment = {"KUBECONFIG": str(control_plane.kubeconfig), "PATH": "/usr/bin:/bin"}
    log = (tmp_path / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script)), env=environment, stdout=log, stderr=log
    )
    try:
        body = {"apiVersion": "example.org/v1", "kind": "Greeting", "spec": {"name": "you"}}
        body["metadata"] = {"namespace": "default", "name": "first"}
        greeting = await real_kube.create(GREETINGS, body)
        words = {"words": "Hello, you!"}
        child = await seen.until(CONFIGMAPS, "first", lambda b: b["data"] == words)
        assert child.metadata.controller_uid() == greeting.metadata.uid
        await seen.until(GREETINGS, "first", lambda b: b.get("status") == words)
        await real_kube.merge_patch(GREETINGS, "default", "first", {"spec": {"name": "all"}})
        await seen.until(CONFIGMAPS, "first", lambda b: b["data"] == {"words": "Hello, all!"})
        await real_kube.delete(CONFIGMAPS, "default", "first")
        await seen.until(CONFIGMAPS, "first", lambda b: b["metadata"]["uid"] != child.metadata.uid)
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            code = await process.wait()
        log.close()
    assert code == 0, (tmp_path / "log").read_text()
    lease = await real_kube.get(LEASES, "default", "greeter")
    assert lease is not None
    assert lease.body["spec"]["holderIdentity"] == ""
