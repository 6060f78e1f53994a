"""An event loop whose time passes only by waiting: a minute of timers runs in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from kaito.clock import Timer


class _Selector(selectors.SelectSelector):
    """Returns at once and says that the time has passed: in here nobody waits for a socket."""

    now = 0.0
    look: Callable[[], None] = staticmethod(lambda: None)

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen"
        if timeout:
            self.look()
            self.now += timeout
            self.look()
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``watch``: called at both ends of every wait: at each moment at which anything changed."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

    def watch(self, look: Callable[[], None]) -> None:
        self._virtual.look = look


class NodeClock:
    """A node's clocks: booted at another time, a little fast or slow, its wall clock off.

    ``frozen_until``: the loop's time before which nothing of the node runs, but for its clocks.
    """

    def __init__(self, loop: VirtualLoop, *, booted: float, rate: float, wall: float) -> None:
        self.frozen_until = 0.0
        self._loop = loop
        self._booted = booted
        self._rate = rate
        self._wall = wall

    def monotonic(self) -> float:
        return self._booted + self._loop.time() * self._rate

    def now(self) -> float:
        return 1_800_000_000 + self._wall + self._loop.time()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = _Timer(self)
        timer.handle = self._loop.call_later(seconds / self._rate, timer.fire, callback)
        return timer

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self._rate)
        await self.thaw()

    async def thaw(self) -> None:
        while self._loop.time() < self.frozen_until:  # noqa: ASYNC110 - time is the subject
            await asyncio.sleep(self.frozen_until - self._loop.time())


class _Timer:
    handle: asyncio.TimerHandle

    def __init__(self, clock: NodeClock) -> None:
        self._clock = clock

    def fire(self, callback: Callable[[], None]) -> None:
        loop = self._clock._loop
        if loop.time() < self._clock.frozen_until:
            self.handle = loop.call_at(self._clock.frozen_until, self.fire, callback)
        else:
            callback()

    def cancel(self) -> None:
        self.handle.cancel()
