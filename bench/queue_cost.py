"""What one key costs the work queue: add, get, done, without metrics."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

from bench.measure import Measure
from kaito.clock import SystemClock
from kaito.controller.workqueue import WorkQueue

KEYS = 50_000
RUNS = 5


def measure() -> Iterator[Measure]:
    """Median of the runs, in microseconds a key."""
    runs = [asyncio.run(_once()) for _ in range(RUNS)]
    yield Measure("queue add+get+done, no metrics", statistics.median(runs), "us", "<= 1.2")


async def _once() -> float:
    queue: WorkQueue[tuple[str, str]] = WorkQueue(clock=SystemClock())
    keys = [("default", f"w{i}") for i in range(KEYS)]
    began = time.perf_counter()
    for key in keys:
        queue.add(key)
        await queue.get()
        queue.done(key)
    return (time.perf_counter() - began) / KEYS * 1e6
