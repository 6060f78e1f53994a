"""What the watchdog over the loop costs while nothing else happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from bench.measure import Measure
from kaito.clock import SystemClock
from kaito.controller.looplag import LoopWatch

WATCHED_SECONDS = 10.0
RUNS = 5


def measure() -> Iterator[Measure]:
    """CPU of the whole process, so of the beats and of the thread."""
    runs = [asyncio.run(_once()) for _ in range(RUNS)]
    yield Measure.of("watchdog over the loop: CPU", runs, "% of a core", "<= 0.5")


async def _once() -> float:
    watch = LoopWatch(clock=SystemClock())
    watch.start()
    try:
        before = time.process_time()
        await asyncio.sleep(WATCHED_SECONDS)
        return (time.process_time() - before) / WATCHED_SECONDS * 100
    finally:
        watch.stop()
