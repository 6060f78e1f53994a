"""Informers against a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kaito.api.meta import ApiObject, ObjectMeta
from kaito.api.views import decode_metadata, decode_owned
from kaito.clock import SystemClock
from kaito.errors import InvalidRequest
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

pytestmark = pytest.mark.controlplane

CONFIGMAPS = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
METADATA = Kind("", "v1", "ConfigMap", "configmaps", True, decode_metadata)
NAMESPACES = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)
CRDS = Kind(
    *("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    namespaced=False,
    decode=decode_owned,
)
WIDGETS = Kind("informers.test", "v1", "Widget", "widgets", True, decode_owned)
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.informers.test"},
    "spec": {
        "group": "informers.test",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object"}},
            }
        ],
    },
}


def configmap(namespace: str, name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": name},
        "data": data,
    }


@pytest.fixture
async def namespace(real_kube: KubeClient) -> AsyncIterator[str]:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "informers"}}
    body["metadata"] = {"generateName": "informers-"}
    made = await real_kube.create(NAMESPACES, body)
    yield made.metadata.name
    await real_kube.delete(NAMESPACES, "", made.metadata.name)


@asynccontextmanager
async def started(informers: InformerSet) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informers.run())
        try:
            yield
        finally:
            task.cancel()


async def until(informer: Informer[Any], holds: Callable[[], bool]) -> None:
    """Wait until a step of the cache makes it so."""
    done = asyncio.Event()
    informer.add_observer(lambda _key: done.set() if holds() else None)
    if not holds():
        async with asyncio.timeout(20):
            await done.wait()


async def reach(informer: Informer[Any], obj: ApiObject) -> None:
    """Wait until the cache has come as far as this object."""
    version = int(obj.metadata.resource_version)
    await until(informer, lambda: int(informer.resource_version or "0") >= version)


def shown(metas: list[ObjectMeta]) -> dict[str, str]:
    return {meta.name: meta.resource_version for meta in metas}


async def test_the_cache_equals_a_list_after_creates_updates_and_deletes(
    real_kube: KubeClient, namespace: str
) -> None:
    """R2, R14, R31: by a streaming list; handlers heard each object's life in order."""
    for number in range(5):
        await real_kube.create(CONFIGMAPS, configmap(namespace, f"before-{number}"))
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, namespace=namespace)
    heard: dict[str, list[str]] = {}

    def hear(change: Change[Any]) -> None:
        what = "added" if change.old is None else "deleted" if change.new is None else "updated"
        heard.setdefault(change.obj.metadata.name, []).append(what)

    informer.add_handler(hear)
    async with started(informers):
        await informers.wait_synced(10)
        for number in range(20):
            name = f"cm-{number}"
            await real_kube.create(CONFIGMAPS, configmap(namespace, name))
            if number % 2:
                await real_kube.merge_patch(CONFIGMAPS, namespace, name, {"data": {"x": "1"}})
            if number % 3 == 0:
                await real_kube.delete(CONFIGMAPS, namespace, name)
        last = await real_kube.create(CONFIGMAPS, configmap(namespace, "last"))
        await reach(informer, last)
        live = await real_kube.list(CONFIGMAPS, namespace=namespace)
        assert shown([o.metadata for o in informer.lister.list()]) == shown(
            [o.metadata for o in live]
        )
    assert heard["cm-1"] == ["added", "updated"]
    assert heard["cm-3"] == ["added", "updated", "deleted"]
    assert heard["cm-0"] == ["added", "deleted"]


async def test_lists_and_watches_do_what_a_stream_does(
    real_kube: KubeClient, namespace: str
) -> None:
    """R7, R12, R14: with streaming off."""
    for number in range(3):
        await real_kube.create(CONFIGMAPS, configmap(namespace, f"cm-{number}"))
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, namespace=namespace)
    informer._watcher._course.can_stream = False
    async with started(informers):
        await informers.wait_synced(10)
        last = await real_kube.create(CONFIGMAPS, configmap(namespace, "last"))
        await reach(informer, last)
        live = await real_kube.list(CONFIGMAPS, namespace=namespace)
        assert shown([o.metadata for o in informer.lister.list()]) == shown(
            [o.metadata for o in live]
        )


async def test_metadata_alone_is_enough_for_a_cache(real_kube: KubeClient, namespace: str) -> None:
    """R32."""
    await real_kube.create(CONFIGMAPS, configmap(namespace, "big", x="y" * 1000))
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(METADATA, namespace=namespace, metadata_only=True)
    async with started(informers):
        await informers.wait_synced(10)
        last = await real_kube.create(CONFIGMAPS, configmap(namespace, "last"))
        await reach(informer, last)
        names = {obj.metadata.name for obj in informer.lister.list()}
    assert {"big", "last"} <= names


async def test_leaving_a_selector_is_a_deletion(real_kube: KubeClient, namespace: str) -> None:
    """R29."""
    body = configmap(namespace, "a")
    body["metadata"]["labels"] = {"team": "red"}
    await real_kube.create(CONFIGMAPS, body)
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, namespace=namespace, label_selector="team=red")
    async with started(informers):
        await informers.wait_synced(10)
        assert informer.lister.get(namespace, "a")
        left = await real_kube.merge_patch(
            CONFIGMAPS, namespace, "a", {"metadata": {"labels": {"team": "blue"}}}
        )
        await reach(informer, left)
        assert informer.lister.get(namespace, "a") is None


async def test_a_field_selector_the_server_does_not_know_fails_the_start(
    real_kube: KubeClient,
) -> None:
    """R30."""
    informer = Informer(real_kube, CONFIGMAPS, clock=SystemClock(), field_selector="data.x=1")
    with pytest.raises(InvalidRequest, match=r"configmaps.*data\.x=1"):
        async with asyncio.timeout(10):
            await informer.run()


async def test_a_kind_whose_crd_comes_and_goes_is_synced_emptied_and_synced_again(
    real_kube: KubeClient, namespace: str
) -> None:
    """R26: optional meanwhile; within 11 s of the CRD."""
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(WIDGETS, optional=True)
    heard: list[str] = []
    informer.add_handler(lambda change: heard.append("added" if change.new else "deleted"))
    async with started(informers):
        await informers.wait_synced(10)
        assert not informer.has_synced
        assert not informer.is_served
        await real_kube.create(CRDS, CRD)
        try:
            async with asyncio.timeout(15):
                await until(informer, lambda: informer.has_synced)
            widget = {"apiVersion": "informers.test/v1", "kind": "Widget"}
            widget["metadata"] = {"namespace": namespace, "name": "w"}
            made = await real_kube.create(WIDGETS, widget)
            await reach(informer, made)
            assert informer.lister.get(namespace, "w")
        finally:
            await real_kube.delete(CRDS, "", "widgets.informers.test")
        await until(informer, lambda: not informer.is_served)
        assert informer.lister.list() == ()
        assert heard == ["added", "deleted"]


async def test_a_reconcile_sees_what_it_wrote(real_kube: KubeClient, namespace: str) -> None:
    """A1, A2, A4: a hundred passes that each create what they do not see make a hundred."""
    clock = SystemClock()
    informers = InformerSet(real_kube, clock=clock)
    informer = informers.informer(CONFIGMAPS, namespace=namespace, indexes={"owner": owned})
    freshness = Freshness(clock=clock, read=real_kube.get)
    freshness.track(informer)
    real_kube.on_written = freshness.on_written
    owner = ("test", (namespace, "me"))
    token = CURRENT.set(owner)
    async with started(informers):
        await informers.wait_synced(10)
        for number in range(100):
            fresh = asyncio.Event()
            freshness.on_fresh(owner, fresh.set)
            async with asyncio.timeout(10):
                await fresh.wait()
            assert len(informer.lister.by_index("owner", "me")) == number
            body = configmap(namespace, f"made-{number}", owner="me")
            await real_kube.create(CONFIGMAPS, body)
    CURRENT.reset(token)


def owned(obj: Any) -> list[str]:
    return [obj.body.get("data", {}).get("owner", "")]
