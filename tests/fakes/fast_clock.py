"""A real clock that runs fast: what takes a minute by it takes a second."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kaito.clock import SystemClock, Timer


class FastClock(SystemClock):
    """``factor`` seconds pass in each real one. For waits that only the outside can end.

    ``slept``: the waits of loops so far (back-off), in seconds of this clock.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self.slept: list[float] = []
        super().__init__()

    def monotonic(self) -> float:
        """See Clock."""
        return super().monotonic() * self._factor

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """See Clock."""
        return super().call_later(seconds / self._factor, callback)

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        self.slept.append(seconds)
        await asyncio.sleep(seconds / self._factor)
