"""Python's garbage collector around caches: off while they fill, then blind to what is in them.

JSON has no cycles, so what a cache drops is freed by reference count alone; a full collection that
walked it all would only stop the loop, for half a second with 10,000 objects as mappings.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final, Protocol

import structlog

from kaito.clock import Clock, Timer

log = structlog.get_logger()

THRESHOLDS: Final = (50_000, 50, 100)
LARGE_RELIST: Final = 1_000
QUIET_SECONDS: Final = 3600.0


class GarbageCollector(Protocol):
    """What is used of the module ``gc``."""

    def enable(self) -> None:
        """Collect from time to time."""

    def disable(self) -> None:
        """Collect only when asked."""

    def collect(self) -> int:
        """Collect all generations now; the number of objects found unreachable."""
        ...

    def freeze(self) -> None:
        """Never look again at what is there now."""

    def set_threshold(self, threshold0: int, threshold1: int, threshold2: int, /) -> None:
        """How many allocations, and collections of the younger generation, start one."""


class Collector:
    """One a process. ``pause`` before the caches fill, ``settle`` when the last of them synced."""

    def __init__(self, *, clock: Clock, collector: GarbageCollector = gc) -> None:
        self._clock = clock
        self._gc = collector
        self._settled_at: float | None = None
        self._timer: Timer | None = None

    def pause(self) -> None:
        """No collection until ``settle``."""
        self._gc.disable()

    def settle(self) -> None:
        """Collect once, exempt what is left from every later collection, and go on with those."""
        self._timer = None
        began = self._clock.monotonic()
        self._gc.collect()
        self._gc.freeze()
        self._gc.set_threshold(*THRESHOLDS)
        self._gc.enable()
        _give_back()
        self._settled_at = self._clock.monotonic()
        log.debug("froze caches", seconds=self._settled_at - began)

    def relisted(self, count: int) -> None:
        """So many objects came anew: a large list is settled too, at most once an hour."""
        if count > LARGE_RELIST and self._settled_at is not None and self._timer is None:
            wait = self._settled_at + QUIET_SECONDS - self._clock.monotonic()
            self._timer = self._clock.call_later(max(0.0, wait), self.settle)

    def close(self) -> None:
        """Leave no timer behind, and the collector running."""
        if self._timer is not None:
            self._timer.cancel()
        self._gc.enable()


def _give_back() -> None:
    """Return to the system what the lists' bytes took; a C library without a word for it keeps it.

    Half of what a Pod costs otherwise, after a first sync by plain lists.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
