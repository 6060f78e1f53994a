"""A thousand objects change at random behind a connection on which everything goes wrong.

When the faults stop, all must be as if there had been none: every cache equals a list, its handlers
heard a story without gaps, every child is what its owner says, and no key waits anywhere.

A seed fixes what is done to which object and what becomes of the n-th call of each path, which a
failure shows; not what the machine runs first.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest

from kaito.api.meta import Key, Owned
from kaito.api.views import decode_metadata, decode_owned
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.errors import AlreadyExists, KindNotServed, NotFound
from kaito.informers.freshness import Freshness
from kaito.informers.handlers import Change, own_key
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient
from kaito.kube.config import from_kubeconfig
from kaito.kube.resources import Kind
from kaito.sandbox.controlplane import ControlPlane
from tests.component.through_proxy import (
    CONFIGMAPS,
    NAMESPACES,
    Heard,
    connected,
    manifest,
    namespace_of,
)
from tests.fakes.fast_clock import FastClock
from tests.fakes.fault_plan import Script, Seeded
from tests.fakes.fault_proxy import FaultProxy, fault_proxy

pytestmark = pytest.mark.controlplane

OBJECTS: Final = 1_000
CHANGES_EACH: Final = 2
WRITERS: Final = 12
FASTER: Final = 100.0
"""By how much the clock of the caches and controllers runs ahead: an idle limit takes 6 s."""
SETTLE_SECONDS: Final = 45.0

METADATA: Kind[Any] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_metadata)
GADGETS: Kind[Owned] = Kind("chaos.test", "v1", "Gadget", "gadgets", True, decode_owned)
CRDS: Kind[Owned] = Kind(
    *("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions"),
    namespaced=False,
    decode=decode_owned,
)
CRD: Final = {
    "apiVersion": CRDS.api_version,
    "kind": CRDS.kind,
    "metadata": {"name": GADGETS.resource},
    "spec": {
        "group": GADGETS.group,
        "scope": "Namespaced",
        "names": {"plural": GADGETS.plural, "singular": "gadget", "kind": GADGETS.kind},
        "versions": [
            {
                "name": GADGETS.version,
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "x-kubernetes-preserve-unknown-fields": True,
                    }
                },
            }
        ],
    },
}

Shown = Mapping[Key, tuple[str, str]]
"""Uid and resourceVersion of each object."""


# What changes the world -------------------------------------------------------------------------


async def churn(real: KubeClient, namespaces: tuple[str, ...], seed: int) -> None:
    """Create every object and change each some times; who changes which is fixed by the seed."""

    async def write(writer: int) -> None:
        chance = random.Random(f"churn {seed} {writer}")
        mine = [
            (kind, chance.choice(namespaces), f"o-{number}")
            for number in range(writer, OBJECTS, WRITERS)
            for kind in (CONFIGMAPS if number % 2 else GADGETS,)
        ]
        steps = [(0.0, *thing) for thing in mine]
        steps += [(chance.random(), *thing) for thing in mine for _ in range(CHANGES_EACH)]
        for _, kind, namespace, name in sorted(steps, key=lambda step: step[0]):
            await change(real, kind, namespace, name, chance)

    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write(writer))


async def change(
    real: KubeClient, kind: Kind[Owned], namespace: str, name: str, chance: random.Random
) -> None:
    """Create it if it is not there, else a new value, another colour, or an end."""
    body = manifest(kind, namespace, name, role="source", colour=chance.choice(("red", "blue")))
    body["data"] = {"value": str(chance.random())}
    if chance.random() < 0.3:
        await real.delete(kind, namespace, name)
        if chance.random() < 0.5:
            return
    try:
        await real.merge_patch(kind, namespace, name, body)
    except NotFound:
        await real.create(kind, body)


# What must keep up with it ----------------------------------------------------------------------


class Copier:
    """A controller that keeps one ConfigMap per object, with the object's data and uid."""

    def __init__(
        self,
        kube: KubeClient,
        sources: Informer[Owned],
        configmaps: Informer[Owned],
        *,
        clock: FastClock,
        freshness: Freshness,
    ) -> None:
        self.kind = sources.kind
        self.prefix = f"{self.kind.kind.lower()}-"
        self._kube = kube
        self._sources = sources
        self._configmaps = configmaps
        self.controller = Controller(
            f"copy-{self.kind}",
            self._reconcile,
            clock=clock,
            freshness=freshness,
            sync_timeout=120 * FASTER,
        )
        self.controller.watch(sources, own_key, predicate=lambda c: role(c.obj) == "source")
        self.controller.watch(configmaps, self._of_child)

    def _of_child(self, change: Change[Owned]) -> list[Key]:
        namespace, name = change.obj.metadata.key
        is_ours = role(change.obj) == "child" and name.startswith(self.prefix)
        return [(namespace, name.removeprefix(self.prefix))] if is_ours else []

    async def _reconcile(self, key: Key) -> Result:
        namespace, name = key[0], self.prefix + key[1]
        source = self._sources.lister.get(*key)
        child = self._configmaps.lister.get(namespace, name)
        if source is None:
            if child is not None:
                await self._kube.delete(CONFIGMAPS, namespace, name, uid=child.metadata.uid)
            return Result()
        want = wanted(source)
        if child is None or child.body["data"] != want:
            body = manifest(CONFIGMAPS, namespace, name, role="child") | {"data": want}
            await self._kube.apply(CONFIGMAPS, body, field_manager="chaos")
        return Result()


def role(obj: Any) -> str:
    found: str = obj.metadata.labels.get("role", "")
    return found


def wanted(source: Owned) -> dict[str, Any]:
    data = source.body["data"]
    assert isinstance(data, Mapping)
    return {**data, "uid": source.metadata.uid}


@dataclass
class Cache:
    """An informer with what its handler heard, and which objects it should hold."""

    informer: Informer[Any]
    heard: Heard
    label_selector: str = ""
    namespaces: tuple[str, ...] = ()

    async def expected(self, real: KubeClient) -> Shown:
        found = await real.list(self.informer.kind, label_selector=self.label_selector)
        return {
            key: seen for key, seen in shown(found).items() if key[0] in (self.namespaces or key)
        }

    async def wrong(self, real: KubeClient) -> str:
        """What is not as it should be; empty: nothing."""
        want = await self.expected(real)
        have = shown(self.informer.lister.list())
        if have != want:
            return f"{self}: {have.items() - want.items()} for {want.items() - have.items()}"
        if self.heard.objects != want:
            return f"{self}: told wrongly {self.heard.objects.items() ^ want.items()}"
        return ""

    def __str__(self) -> str:
        return f"{self.informer.kind} {self.label_selector} {self.namespaces}"


def shown(objects: tuple[Any, ...]) -> Shown:
    return {o.metadata.key: (o.metadata.uid, o.metadata.resource_version) for o in objects}


class World:
    """All the caches and both controllers, on one connection."""

    def __init__(self, kube: KubeClient, clock: FastClock, namespaces: tuple[str, ...]) -> None:
        self.freshness = Freshness(clock=clock, read=kube.get)
        kube.on_written = self.freshness.on_written
        self._informers = InformerSet(kube, clock=clock)
        some = namespaces[:2]
        red = "role=source,colour=red"
        configmaps = self._informers.informer(CONFIGMAPS)
        gadgets = self._informers.informer(GADGETS)
        metadata = self._informers.informer(METADATA, metadata_only=True)
        self.caches = [
            Cache(configmaps, Heard(configmaps)),
            Cache(gadgets, Heard(gadgets)),
            Cache(metadata, Heard(metadata)),
        ]
        for kind in (CONFIGMAPS, GADGETS):
            by_label = self._informers.informer(kind, label_selector=red)
            self.caches.append(Cache(by_label, Heard(by_label), label_selector=red))
            scoped = self._informers.informer(kind, namespaces=some)
            self.caches.append(Cache(scoped, Heard(scoped), namespaces=some))
        self.copiers = [
            Copier(kube, sources, configmaps, clock=clock, freshness=self.freshness)
            for sources in (configmaps, gadgets)
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Nothing is waited for: faults meet the first lists too."""
        async with asyncio.TaskGroup() as group:
            runs = [self._informers.run, self.freshness.run]
            runs += [copier.controller.run for copier in self.copiers]
            tasks = [group.create_task(run()) for run in runs]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    def waiting(self) -> str:
        """Keys that wait somewhere; empty: none."""
        places: dict[str, object] = {
            copier.controller.name: copier.controller._queue._entries for copier in self.copiers
        }
        places["unseen writes"] = self.freshness._owners
        return "; ".join(f"{place}: {keys}" for place, keys in places.items() if keys)

    async def wrong_children(self, real: KubeClient) -> str:
        """Children that should not be, or not so; empty: all is right."""
        want = {
            (source.metadata.namespace, copier.prefix + source.metadata.name): wanted(source)
            for copier in self.copiers
            for source in await real.list(copier.kind, label_selector="role=source")
        }
        have = {
            o.metadata.key: o.body["data"]
            for o in await real.list(CONFIGMAPS, label_selector="role=child")
        }
        differ = [key for key in want.keys() | have.keys() if want.get(key) != have.get(key)]
        return f"{len(differ)} wrong children, {differ[:5]}" if differ else ""

    async def wrong(self, real: KubeClient) -> str:
        """The first thing that is not as it should be; empty: all is."""
        if waiting := self.waiting():
            return waiting
        for cache in self.caches:
            if wrong := await cache.wrong(real):
                return wrong
        return await self.wrong_children(real)


async def settle(world: World, real: KubeClient) -> None:
    """Return when everything is as it should be, in time; else say what is not."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + SETTLE_SECONDS
    while wrong := await world.wrong(real):
        assert loop.time() < ends, wrong
        await asyncio.sleep(0.25)
    for cache in world.caches:
        assert cache.heard.wrong == [], f"{cache} told {cache.heard.wrong[0]}"


@pytest.fixture
async def gadgets(real_kube: KubeClient) -> None:
    """The kind is served. It stays: an end of its CRD would meet the next run's beginning."""
    with contextlib.suppress(AlreadyExists):
        await real_kube.create(CRDS, CRD)
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(KindNotServed):
                await real_kube.list(GADGETS)
                return
            await asyncio.sleep(0.05)


async def survive(plane: ControlPlane, real: KubeClient, seed: int) -> FaultProxy:
    """One run with one seed."""
    clock = FastClock(FASTER)
    upstream = await from_kubeconfig(plane.kubeconfig)
    async with (
        # Names that the seed fixes, as the paths of calls are what fates are drawn for.
        namespace_of(real, f"chaos-{seed}-one") as one,
        namespace_of(real, f"chaos-{seed}-two") as two,
        namespace_of(real, f"chaos-{seed}-three") as three,
        fault_proxy(upstream, Seeded(seed)) as proxy,
        connected(proxy.config, clock) as kube,
    ):
        world = World(kube, clock, (one, two, three))
        try:
            async with world.running():
                await churn(real, (one, two, three), seed)
                proxy.plan = Script()
                await settle(world, real)
        except BaseException as err:
            err.add_note(f"seed {seed}; on the wire:\n{proxy.story()}")
            raise
    return proxy


@pytest.mark.usefixtures("gadgets")
async def test_chaos_leaves_no_trace(control_plane: ControlPlane, real_kube: KubeClient) -> None:
    """R4, R15, R19, R21, R24, R29, R31, R36, A3: full, by metadata, label and namespace."""
    proxy = await survive(control_plane, real_kube, seed=20261125)
    met = {type(e.fault).__name__ for e in proxy.trace if e.fault is not None}
    assert len(met) == 9, f"only {met}"


@pytest.mark.long
@pytest.mark.usefixtures("gadgets")
@pytest.mark.parametrize("seed", range(1, 16))
async def test_ten_minutes_of_chaos_leave_no_trace(
    control_plane: ControlPlane, real_kube: KubeClient, seed: int
) -> None:
    """R4, R15, R19, R21, R24, R29, R31, R36, A3: other seeds."""
    # What is left of an earlier run must not be in this one.
    for namespace in [o.metadata.name for o in await real_kube.list(NAMESPACES)]:
        if namespace.startswith("chaos-"):
            await gone(real_kube, namespace)
    await survive(control_plane, real_kube, seed)


async def gone(real: KubeClient, namespace: str) -> None:
    async with asyncio.timeout(120):
        while await real.get(NAMESPACES, "", namespace) is not None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.2)
