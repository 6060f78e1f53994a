"""KubeClient against a real API server: what only a real one does."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.errors import (
    Forbidden,
    InvalidRequest,
    KindNotServed,
    NamespaceMissing,
    NamespaceTerminating,
    ResourceVersionTooLarge,
    Unauthorized,
)
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig, in_cluster
from kaito.kube.resources import Kind
from kaito.kube.tokens import FileToken

if TYPE_CHECKING:
    from pathlib import Path

    from kaito.sandbox.controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

CONFIGMAPS: Kind[Owned] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
NAMESPACES: Kind[Owned] = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)
WIDGETS: Kind[Owned] = Kind("ex.io", "v1", "Widget", "widgets", True, decode_owned)


def configmap(namespace: str, name: str = "a") -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {"x": "1"},
    }


@pytest.fixture
async def namespace(real_kube: KubeClient) -> AsyncIterator[str]:
    name = f"kube-{uuid.uuid4().hex[:8]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await real_kube.create(NAMESPACES, manifest)
    yield name
    await real_kube.delete(NAMESPACES, "", name)


async def test_a_kind_without_crd_is_not_served(real_kube: KubeClient, namespace: str) -> None:
    """W10"""
    for call in (
        real_kube.get(WIDGETS, namespace, "w"),
        real_kube.list(WIDGETS),
        real_kube.delete(WIDGETS, namespace, "w"),
    ):
        with pytest.raises(KindNotServed):
            await call


async def test_creating_in_a_missing_namespace_says_so(real_kube: KubeClient) -> None:
    """W10"""
    with pytest.raises(NamespaceMissing):
        await real_kube.create(CONFIGMAPS, configmap("missing"))
    with pytest.raises(NamespaceMissing):
        await real_kube.apply(CONFIGMAPS, configmap("missing"), field_manager="m")
    assert await real_kube.get(CONFIGMAPS, "missing", "a") is None
    assert await real_kube.get(NAMESPACES, "", "missing") is None


async def test_creating_in_a_namespace_that_goes_says_so(real_kube: KubeClient) -> None:
    """W11"""
    name = f"going-{uuid.uuid4().hex[:8]}"
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    await real_kube.create(NAMESPACES, manifest)
    held = configmap(name, "held")
    held["metadata"] |= {"finalizers": ["kaito.sh/test"]}  # type: ignore[operator]
    await real_kube.create(CONFIGMAPS, held)
    await real_kube.delete(NAMESPACES, "", name)
    with pytest.raises(NamespaceTerminating):
        await real_kube.create(CONFIGMAPS, configmap(name))
    free = {"metadata": {"finalizers": None}}
    await real_kube.merge_patch(CONFIGMAPS, name, "held", free)


async def test_a_version_of_the_future_is_too_large(real_kube: KubeClient) -> None:
    """R9"""
    query = {"resourceVersion": "999999999"}
    with pytest.raises(ResourceVersionTooLarge):
        await real_kube.list_page(CONFIGMAPS, namespace="", query=query)


async def test_a_selector_the_server_does_not_know_is_an_invalid_request(
    real_kube: KubeClient,
) -> None:
    """R30"""
    with pytest.raises(InvalidRequest, match=r"spec\.x"):
        await real_kube.list(CONFIGMAPS, field_selector="spec.x=1")


async def test_a_watch_ends_cleanly_at_its_timeout(real_kube: KubeClient, namespace: str) -> None:
    """R16"""
    query = {"resourceVersion": "0", "timeoutSeconds": "1"}
    watch = real_kube.watch(CONFIGMAPS, namespace=namespace, query=query, idle_seconds=11.0)
    async with asyncio.timeout(10), watch as lines:
        types = [json.loads(line)["type"] async for line in lines]
    assert set(types) <= {"ADDED", "BOOKMARK"}


async def test_a_large_list_comes_whole(real_kube: KubeClient, namespace: str) -> None:
    count = 520
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(real_kube.create(CONFIGMAPS, configmap(namespace, f"c{number:04}")))
    found = await real_kube.list(
        CONFIGMAPS, namespace=namespace, field_selector="metadata.name!=kube-root-ca.crt"
    )
    assert [obj.metadata.name for obj in found] == [f"c{number:04}" for number in range(count)]


async def test_a_service_account_has_its_own_rights(
    control_plane: ControlPlane, namespace: str
) -> None:
    """W9, W19, W23"""
    server = urlsplit(control_plane.server)
    folder = await asyncio.to_thread(control_plane.service_account_folder, "default", "default")
    config = in_cluster(folder=folder, host=server.hostname or "", port=str(server.port))
    client = await connect(config, clock=SystemClock(), component="tests")
    assert await client.server_version() >= (1, 34)
    with pytest.raises(Forbidden):
        await client.list(CONFIGMAPS, namespace=namespace)
    query = {"resourceVersion": "0"}
    with pytest.raises(Forbidden):
        await client.watch(CONFIGMAPS, namespace="", query=query, idle_seconds=5.0).__aenter__()
    await client.close()


async def test_a_token_that_is_none_is_unauthorized(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    """W20"""
    (tmp_path / "token").write_text("nonsense\n")
    config = ClusterConfig(
        host=control_plane.server,
        ca_file=control_plane.ca_file,
        token=FileToken(tmp_path / "token"),
    )
    client = await connect(config, clock=SystemClock(), component="tests")
    with pytest.raises(Unauthorized):
        await client.server_version()
    await client.close()


async def test_the_servers_date_sets_the_clock(control_plane: ControlPlane) -> None:
    """P11"""

    class Clock(SystemClock):
        dates: list[float] = []  # noqa: RUF012 - one test's

        def observe_server_date(self, epoch_seconds: float) -> None:
            self.dates.append(epoch_seconds)
            super().observe_server_date(epoch_seconds)

    clock = Clock()
    config = ClusterConfig(host=control_plane.server, ca_file=control_plane.ca_file)
    client = await connect(config, clock=clock, component="tests")
    await client.server_version()
    await client.close()
    assert len(clock.dates) == 1
