"""Time as a dependency: real in production, turned by hand in tests.

Two clocks, because two questions: *how long* (the boot clock, which goes on while a machine is
suspended and which no one can set) and *what time is it* (the API server's, as the timestamps on
objects are the server's too). The host's wall clock decides nothing (facts P11).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Protocol


class Timer(Protocol):
    """Handle of a scheduled callback."""

    def cancel(self) -> None:
        """Drop the callback; harmless when it has run."""
        ...


class Clock(Protocol):
    """What the time is and how to be called back."""

    def monotonic(self) -> float:
        """Seconds since boot, suspended time included (CLOCK_BOOTTIME). Never goes back."""
        ...

    def now(self) -> float:
        """Seconds since the epoch by the API server's clock."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Run the callback on the loop once, ``seconds`` from now."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. For pauses of a loop (back-off, polling), never inside a reconcile."""
        ...


class SystemClock:
    """The real clocks. ``observe_server_date`` keeps the offset between boot and server time."""

    def __init__(self) -> None:
        self._offset = time.time() - self.monotonic()  # until the first answer of the API server
        self._synced = False

    monotonic = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))
    """See Clock. Asked several times per event: no frame of Python lies between."""

    def now(self) -> float:
        """See Clock."""
        return self.monotonic() + self._offset

    def observe_server_date(self, epoch_seconds: float) -> None:
        """Take an API answer's ``Date`` header. It has whole seconds: moves under 1 s are noise."""
        offset = epoch_seconds + 0.5 - self.monotonic()
        if not self._synced or abs(offset - self._offset) > 1.0:
            self._offset, self._synced = offset, True

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """See Clock. On the loop's own clock, which stands still while suspended."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(seconds)


@asynccontextmanager
async def time_limit(clock: Clock, seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """``asyncio.timeout`` on this clock: TimeoutError after ``seconds``.

    ``expired()`` of what it yields tells this limit from a TimeoutError of the block's own.
    """
    async with asyncio.timeout(None) as timeout:
        timer = clock.call_later(seconds, lambda: timeout.reschedule(0))
        try:
            yield timeout
        finally:
            timer.cancel()


def rfc3339(epoch_seconds: float) -> str:
    """``2026-01-31T09:30:00Z``: the form of metav1.Time, whole seconds, UTC."""
    return datetime.fromtimestamp(int(epoch_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(epoch_seconds: float) -> str:
    """``2026-01-31T09:30:00.000000Z``: the form of metav1.MicroTime, exactly six digits."""
    return datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch; takes ``Z`` or an offset and 0 to 9 fraction digits.

    Raises:
        ValueError: not such a time.
    """
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[: min(digits, 6)]}{tail[digits:]}"
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time without zone: {text!r}")
    return moment.timestamp()
