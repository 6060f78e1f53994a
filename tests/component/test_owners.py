"""What the real API server and its garbage collector make of owner references and conditions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.errors import InvalidRequest
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.reconcilers.ownership import owner_reference
from tests.fakes.mutation import WatchedInformerSet

pytestmark = pytest.mark.controlplane

CONFIGMAPS = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
PODS = Kind("", "v1", "Pod", "pods", True, decode_owned)


def configmap(name: str, *owners: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": "default", "name": name, "ownerReferences": list(owners)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"a": "b"}}


@pytest.fixture
async def owner(real_kube: KubeClient) -> AsyncIterator[dict[str, Any]]:
    made = await real_kube.create(CONFIGMAPS, configmap("owner"))
    yield owner_reference("v1", "ConfigMap", made.metadata)
    await real_kube.delete(CONFIGMAPS, "default", "owner")


async def test_a_second_controller_is_refused_and_a_first_one_takes_its_child_along(
    real_kube: KubeClient, owner: dict[str, Any]
) -> None:
    """A17."""
    twice = configmap("twice", owner, {**owner, "uid": "another"})
    with pytest.raises(InvalidRequest) as caught:
        await real_kube.create(CONFIGMAPS, twice)
    assert caught.value.status == 422
    await real_kube.create(CONFIGMAPS, configmap("child", owner))
    await real_kube.delete(CONFIGMAPS, "default", "owner")
    await gone(real_kube, "child")


async def test_a_child_of_an_owner_that_never_was_is_collected(
    real_kube: KubeClient, owner: dict[str, Any]
) -> None:
    """A17: the uid decides, not the name; a wrong one costs the child its life."""
    await real_kube.create(CONFIGMAPS, configmap("stray", {**owner, "uid": "no-such-uid"}))
    await gone(real_kube, "stray")


async def gone(kube: KubeClient, name: str) -> None:
    """Until a watch has shown its end."""
    informers = WatchedInformerSet(kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, field_selector=f"metadata.name={name}")
    changed = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informers.run())
        await informers.wait_synced(20)
        informer.add_handler(lambda _: changed.set())
        async with asyncio.timeout(60):
            while informer.lister.list():
                await changed.wait()
                changed.clear()
        task.cancel()
    assert await kube.get(CONFIGMAPS, "default", name) is None
