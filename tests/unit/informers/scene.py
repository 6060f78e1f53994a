"""A watcher, the client it asks and the cache it fills, all written down."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
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

    async def replace(self, objects: Mapping[Key, Thing], resource_version: str) -> None:
        self.resource_version = resource_version
        self.seen.append("list " + " ".join(name for _, name in objects))

    async def not_served(self) -> None:
        self.not_served_times += 1


class Clock(FakeClock):
    """One that a test can also move without waiting for what it wakes."""

    def skip(self) -> None:
        """Move to the next timer, if there is one, and run it."""
        if self._timers:
            self._boot, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()

    def spend(self, seconds: float) -> None:
        """Time passes in the middle of a step."""
        self._boot += seconds


class Scene:
    """``cost``: seconds that decoding an object takes."""

    def __init__(self, *, sink: Sink | None = None, cost: float = 0.0, **options) -> None:
        self.clock = Clock()
        self.kube = FakeKube()
        self.sink = sink or Sink()
        self.decoded: list[bytes] = []
        self._cost = cost
        kind = dataclasses.replace(THINGS, decode=self._decode)
        options = {"chance": lambda: 0.0} | options
        self.watcher = Watcher(self.kube, kind, self.sink, clock=self.clock, **options)

    def _decode(self, item: bytes) -> Thing:
        self.clock.spend(self._cost)
        self.decoded.append(item)
        return THINGS.decode(item)

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
