"""A watcher, the client it asks and the cache it fills, all written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from kaito.api.meta import Key
from kaito.informers.course import State
from kaito.informers.watcher import Watcher
from tests.fakes.clock import FakeClock, settle
from tests.unit.informers.fake import THINGS, FakeKube, Thing


class Sink:
    """Writes down what the watcher brought."""

    def __init__(self) -> None:
        self.resource_version = ""
        self.seen: list[str] = []
        self.not_served_times = 0

    def apply(self, event: str, obj: Thing) -> None:
        self.resource_version = obj.metadata.resource_version
        self.seen.append(f"{event} {obj.metadata.name} {obj.metadata.resource_version}")

    def drop(self, key: Key, resource_version: str) -> None:
        self.resource_version = resource_version
        self.seen.append(f"drop {key[1]} {resource_version}")

    def bookmark(self, resource_version: str) -> None:
        self.resource_version = resource_version

    def replace(self, objects: Mapping[Key, Thing], resource_version: str) -> None:
        self.resource_version = resource_version
        self.seen.append("list " + " ".join(name for _, name in objects))

    def not_served(self) -> None:
        self.not_served_times += 1


class Scene:
    def __init__(self, **options) -> None:
        self.clock = FakeClock()
        self.kube = FakeKube()
        self.sink = Sink()
        self.watcher = Watcher(
            self.kube, THINGS, self.sink, clock=self.clock, chance=lambda: 0.0, **options
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.watcher.run())
            await settle()
            try:
                yield
            finally:
                task.cancel()
        assert self.watcher.state is State.STOPPED
        assert all(feed.is_closed for feed in self.kube.opened)
