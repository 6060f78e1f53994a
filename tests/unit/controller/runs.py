"""A controller while it runs, and a reconcile that notes what it was called with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from kaito.api.meta import Key
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.informers.handlers import Change
from tests.fakes.clock import settle


class Log:
    """A reconcile that notes its keys and can be held."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.running: set[Key] = set()
        self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, key: Key) -> Result:
        assert key not in self.running
        self.running.add(key)
        self.most = max(self.most, len(self.running))
        self.keys.append(key)
        try:
            await self.gate.wait()
        finally:
            self.running.remove(key)
        return Result()

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.keys]


def own_key(change: Change[Any]) -> Iterable[Key]:
    return [change.obj.metadata.key]


@asynccontextmanager
async def running(controller: Controller) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(controller.run())
        await settle()
        yield
        await settle()
        controller.stop()
        await task
