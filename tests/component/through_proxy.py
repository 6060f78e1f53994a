"""What the tests under faults share: kinds, a client through the proxy, caches, waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import Clock
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig, from_kubeconfig
from kaito.kube.resources import Kind
from kaito.sandbox.controlplane import ControlPlane
from tests.fakes.fast_clock import FastClock
from tests.fakes.fault_plan import Fault, Script
from tests.fakes.fault_proxy import Exchange, FaultProxy, fault_proxy
from tests.fakes.mutation import WatchedInformerSet

CONFIGMAPS: Kind[Owned] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
SECRETS: Kind[Owned] = Kind("", "v1", "Secret", "secrets", True, decode_owned)
NAMESPACES: Kind[Owned] = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)


def manifest(kind: Kind[Any], namespace: str, name: str, **labels: str) -> dict[str, Any]:
    """A name that ends with a dash is the beginning of one that the server makes."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "namespace": namespace,
            "generateName" if name.endswith("-") else "name": name,
            "labels": labels,
        },
    }


class Heard:
    """What the handlers of an informer were told, as a reader who knows nothing else sees it.

    ``objects``: the cache rebuilt from changes alone. ``wrong``: changes that do not follow from
    those before: an add of what is there, an update or deletion of what is not.
    """

    def __init__(self, informer: Informer[Any]) -> None:
        self.objects: dict[tuple[str, str], tuple[str, str]] = {}
        self.wrong: list[str] = []
        self.names: list[str] = []
        self._waiting: list[tuple[Callable[[], bool], asyncio.Event]] = []
        informer.add_handler(self._hear)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return after the change that makes it so."""
        done = asyncio.Event()
        self._waiting.append((holds, done))
        async with asyncio.timeout(30):
            if not holds():
                await done.wait()

    def _hear(self, change: Change[Any]) -> None:
        meta = change.obj.metadata
        known = self.objects.get(meta.key)
        before = known[0] if known is not None else None
        if before != (change.old.metadata.uid if change.old is not None else None):
            self.wrong.append(f"{change} after {known}")
        if change.new is None:
            self.objects.pop(meta.key, None)
        else:
            self.objects[meta.key] = (meta.uid, meta.resource_version)
        self.names.append(meta.name)
        for holds, done in self._waiting:
            if holds():
                done.set()


async def eventually(holds: Callable[[], bool]) -> None:
    """For what no handler tells of."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(config: ClusterConfig, clock: Clock) -> AsyncIterator[KubeClient]:
    """A client; of the proxy's config: one that reaches the server through it only."""
    client = await connect(config, clock=clock, component="faults")
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def running(informers: InformerSet) -> AsyncIterator[None]:
    """Synced caches."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(informers.run())]
        try:
            await informers.wait_synced(600)
            yield
        finally:
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def namespace_of(client: KubeClient, name: str) -> AsyncIterator[str]:
    """A namespace of one test's own. A name that ends with a dash gets its rest by the server."""
    made = await client.create(NAMESPACES, manifest(NAMESPACES, "", name))
    try:
        yield made.metadata.name
    finally:
        await client.delete(NAMESPACES, "", made.metadata.name)


@dataclass
class Stage:
    """``real``: the server without faults. ``kube``: through the proxy, by the ``script``."""

    real: KubeClient
    kube: KubeClient
    script: Script
    proxy: FaultProxy
    clock: FastClock
    namespace: str

    async def make(self, name: str) -> Owned:
        """Behind the proxy's back."""
        return await self.real.create(CONFIGMAPS, self.configmap(name))

    def configmap(self, name: str) -> dict[str, Any]:
        return manifest(CONFIGMAPS, self.namespace, name, stage=self.namespace)

    def informer(self, informers: InformerSet) -> Informer[Owned]:
        """Of this test's objects alone."""
        return informers.informer(CONFIGMAPS, label_selector=f"stage={self.namespace}")

    @asynccontextmanager
    async def synced(self, *faults: Fault) -> AsyncIterator[tuple[Informer[Owned], Heard]]:
        """A cache of one object, ``first``, synced while the faults meet its watches."""
        await self.make("first")
        for fault in faults:
            self.script.add(fault, "WATCH")
        informers = WatchedInformerSet(self.kube, clock=self.clock)
        informer = self.informer(informers)
        heard = Heard(informer)
        async with running(informers):
            yield informer, heard
        assert heard.wrong == []

    def watches(self) -> list[Exchange]:
        return self.proxy.seen("WATCH")

    def lists(self) -> list[str]:
        """The resource versions that lists asked for."""
        return [e.call.query.get("resourceVersion", "") for e in self.proxy.seen("GET", "/config")]


@asynccontextmanager
async def staged(plane: ControlPlane, clock: FastClock) -> AsyncIterator[Stage]:
    upstream, script = await from_kubeconfig(plane.kubeconfig), Script()
    async with (
        connected(upstream, clock) as real,
        namespace_of(real, "faults-") as namespace,
        fault_proxy(upstream, script) as proxy,
        connected(proxy.config, clock) as kube,
    ):
        yield Stage(real, kube, script, proxy, clock, namespace)


def is_list(exchange: Exchange) -> bool:
    return "sendInitialEvents" in exchange.call.query


def version(exchange: Exchange) -> str:
    return exchange.call.query.get("resourceVersion", "")
