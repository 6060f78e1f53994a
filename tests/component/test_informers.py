"""Informers against a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from kaito.api.meta import ApiObject, ObjectMeta
from kaito.api.views import decode_metadata, decode_owned
from kaito.clock import SystemClock
from kaito.errors import Forbidden, InvalidRequest, SyncTimeout
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import in_cluster
from kaito.kube.resources import Kind
from tests.fakes.mutation import WatchedInformerSet

if TYPE_CHECKING:
    from kaito.sandbox.controlplane import ControlPlane

pytestmark = pytest.mark.controlplane

CONFIGMAPS = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
METADATA = Kind("", "v1", "ConfigMap", "configmaps", True, decode_metadata)
NAMESPACES = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)
CRDS = Kind(
    *("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    namespaced=False,
    decode=decode_owned,
)
RBAC = {
    "ServiceAccount": Kind("", "v1", "ServiceAccount", "serviceaccounts", True, decode_owned),
    "Role": Kind("rbac.authorization.k8s.io", "v1", "Role", "roles", True, decode_owned),
    "RoleBinding": Kind(
        *("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", True, decode_owned)
    ),
}
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
    informers = WatchedInformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, namespaces=(namespace,))
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
    informers = WatchedInformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(CONFIGMAPS, namespaces=(namespace,))
    informer._watchers[0]._course.can_stream = False
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
    informers = WatchedInformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(METADATA, namespaces=(namespace,), metadata_only=True)
    async with started(informers):
        await informers.wait_synced(10)
        last = await real_kube.create(CONFIGMAPS, configmap(namespace, "last"))
        await reach(informer, last)
        names = {obj.metadata.name for obj in informer.lister.list()}
    assert {"big", "last"} <= names


async def test_who_enters_a_selector_is_added_and_who_leaves_it_deleted(
    real_kube: KubeClient, namespace: str
) -> None:
    """R29: the deletion shows the object as it was inside, at the version of its leaving."""
    body = configmap(namespace, "a")
    body["metadata"]["labels"] = {"team": "red"}
    await real_kube.create(CONFIGMAPS, body)
    informers = InformerSet(real_kube, clock=SystemClock())
    informer = informers.informer(
        CONFIGMAPS, namespaces=(namespace,), label_selector="team=red", indexes={"team": team}
    )
    changes: list[Change[Any]] = []
    informer.add_handler(changes.append)
    async with started(informers):
        await informers.wait_synced(10)
        assert informer.lister.get(namespace, "a")
        for colour in ("blue", "red"):
            labels = {"metadata": {"labels": {"team": colour}}}
            last = await real_kube.merge_patch(CONFIGMAPS, namespace, "a", labels)
            await informer.reached(last.metadata.resource_version, 10)
            inside = informer.lister.get(namespace, "a")
            assert (inside is not None) is (colour == "red")
            assert informer.lister.by_index("team", "red") == (() if inside is None else (inside,))
    first, left, again = changes
    assert first.initial
    assert left.new is None
    assert left.obj.metadata.labels == {"team": "red"}
    assert left.obj.metadata.resource_version > first.obj.metadata.resource_version
    assert (again.old, again.initial) == (None, False)


def team(obj: ApiObject) -> list[str]:
    return [obj.metadata.labels.get("team", "")]


async def test_rights_in_two_namespaces_are_enough_for_a_cache_of_two(
    real_kube: KubeClient, control_plane: ControlPlane, namespace: str
) -> None:
    """R36: a list of all would be forbidden, and so would a third one."""
    other, closed = f"{namespace}-other", f"{namespace}-closed"
    for name in (other, closed):
        await real_kube.create(NAMESPACES, named("v1", "Namespace", "", name))
    for where in (namespace, other):
        for manifest in reader_of_configmaps(where, account=namespace):
            await real_kube.create(RBAC[manifest["kind"]], manifest)
    server = urlsplit(control_plane.server)
    folder = await asyncio.to_thread(control_plane.service_account_folder, namespace, "reader")
    config = in_cluster(folder=folder, host=server.hostname or "", port=str(server.port))
    limited = await connect(config, clock=SystemClock(), component="tests")
    try:
        with pytest.raises(Forbidden):
            await limited.list(CONFIGMAPS)
        informers = InformerSet(limited, clock=SystemClock())
        both = informers.informer(CONFIGMAPS, namespaces=(namespace, other))
        async with started(informers):
            await informers.wait_synced(10)
            for where in (namespace, other):
                made = await real_kube.create(CONFIGMAPS, configmap(where, "cm"))
                await until(both, lambda at=where, obj=made: both.lister.get(at, "cm") == obj)
            assert {o.metadata.namespace for o in both.lister.list()} == {namespace, other}
            beyond = informers.informer(CONFIGMAPS, namespaces=(namespace, closed))
            with pytest.raises(SyncTimeout, match=r"configmaps: Forbidden"):
                await informers.wait_synced(2)
            assert both.has_synced
            assert not beyond.has_synced
    finally:
        await limited.close()
        for name in (other, closed):
            await real_kube.delete(NAMESPACES, "", name)


def named(api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name} if namespace else {"name": name}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def reader_of_configmaps(namespace: str, *, account: str) -> list[dict[str, Any]]:
    """Rights in this namespace for the service account ``reader`` of one of them."""
    api = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}]
    subject = {"kind": "ServiceAccount", "namespace": account, "name": "reader"}
    return [
        *([named("v1", "ServiceAccount", namespace, "reader")] if namespace == account else []),
        {**named(f"{api}/v1", "Role", namespace, "reader"), "rules": rules},
        {
            **named(f"{api}/v1", "RoleBinding", namespace, "reader"),
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "reader"},
            "subjects": [subject],
        },
    ]


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
    informers = WatchedInformerSet(real_kube, clock=SystemClock())
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
    informers = WatchedInformerSet(real_kube, clock=clock)
    informer = informers.informer(CONFIGMAPS, namespaces=(namespace,), indexes={"owner": owned})
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
