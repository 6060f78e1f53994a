"""A clock that moves only when the test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """``kaito.clock.Clock`` turned by hand: ``await clock.advance(10)``."""

    def __init__(self, start_epoch: float = 1_800_000_000.0) -> None:
        self._boot = 1_000.0
        self._offset = start_epoch - self._boot
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _Timer]] = []

    def monotonic(self) -> float:
        return self._boot

    def now(self) -> float:
        return self._boot + self._offset

    def call_later(self, seconds: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._boot + seconds, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: woken.done() or woken.set_result(None))
        try:
            await woken
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Move time on, running what falls due in its order, and let the loop settle each time."""
        until = self._boot + seconds
        await settle()
        while self._timers and self._timers[0][0] <= until:
            self._boot, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                timer.callback()
                await settle()
        self._boot = until
        await settle()


async def settle(turns: int = 20) -> None:
    """Let everything that is ready run. For code that waits on nothing outside the process."""
    for _ in range(turns):
        await asyncio.sleep(0)
