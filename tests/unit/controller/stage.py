"""A manager with every part faked, and a diary of what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

from structlog.testing import capture_logs

from kaito.controller.manager import Manager
from kaito.errors import KaitoError
from kaito.informers.informer import Informer
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeInformer


class Stage:
    """A manager with every part faked, and a diary of what happened."""

    def __init__(self, clock: FakeClock, **settings: Any) -> None:
        self.diary: list[str] = []
        self.synced = asyncio.Event()
        self.won = asyncio.Event()
        self.over: asyncio.Future[KaitoError] = asyncio.get_running_loop().create_future()
        self.informers: list[FakeInformer] = []
        self.stop = asyncio.Event()
        self.manager = Manager(clock=clock, **settings)

    @classmethod
    def whole(cls, clock: FakeClock, **settings: Any) -> Stage:
        stage = cls(clock)
        stage.manager = Manager(
            clock=clock,
            elector=cast(Any, FakeElector(stage)),
            probes=cast(Any, FakeProbes(stage)),
            recorder=cast(Any, FakeRecorder(stage)),
            collector=cast(Any, FakeCollector(stage)),
            **settings,
        )
        stage.manager.add_informers(cast(Any, FakeInformers(stage)))
        stage.manager.add_runnable("always", stage.runs("always"), leader_only=False)
        stage.manager.add_runnable("leading", stage.runs("leading"), leader_only=True)
        return stage

    def runs(self, name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            self.diary.append(f"{name} started")
            try:
                await asyncio.Event().wait()
            finally:
                self.diary.append(f"{name} stopped")

        return run

    @asynccontextmanager
    async def running(self, said: list[Any] | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """Stops the manager in the end; its error is the block's. ``said``: gets the log."""
        with capture_logs() as logs:
            task = asyncio.get_running_loop().create_task(self.manager.run(self.stop))
            await settle()
            try:
                yield task
            finally:
                self.stop.set()
            try:
                await task
            finally:
                if said is not None:
                    said += logs


class FakeElector:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def start(self) -> None:
        self.stage.diary.append("campaign started")

    async def acquired(self) -> None:
        await self.stage.won.wait()

    async def lost(self) -> KaitoError:
        return await asyncio.shield(self.stage.over)

    async def release(self) -> None:
        self.stage.diary.append("lease released")

    def health(self) -> str | None:
        return None


class FakeProbes:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.checks: dict[str, Callable[[], str | None]] = {}
        self.is_up = False

    def add_liveness(self, name: str, check: Callable[[], str | None]) -> None:
        self.checks[name] = check

    add_readiness = add_liveness

    def start(self) -> None:
        self.is_up = True
        self.stage.diary.append("probes started")

    def stop(self) -> None:
        if self.is_up:
            self.stage.diary.append("probes stopped")
        self.is_up = False


class FakeRecorder:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def flush(self, timeout: float) -> None:
        self.stage.diary.append(f"events flushed within {timeout:g} s")


class FakeCollector:
    def __init__(self, stage: Stage) -> None:
        self.diary = stage.diary

    def pause(self) -> None:
        self.diary.append("collector paused")

    def settle(self) -> None:
        self.diary.append("collector settled")

    def close(self) -> None:
        self.diary.append("collector closed")


class FakeInformers:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.run = stage.runs("caches")

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter(cast(list[Any], self.stage.informers))

    async def wait_synced(self, timeout: float) -> None:
        await self.stage.synced.wait()
