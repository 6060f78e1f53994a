"""What one key costs: in the work queue, waiting in it, and in a whole reconcile for nothing.

CPU time, on uvloop as the operator runs; medians of five runs.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

import uvloop

from bench.measure import Measure
from kaito.api.meta import Key
from kaito.clock import SystemClock
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.controller.workqueue import WorkQueue
from kaito.metrics import QueueSeries

T = TypeVar("T")

KEYS = 50_000
WAITING = 200_000
RUNS = 5
WORKERS = 8
_NAMES = (f"bench-{i}" for i in itertools.count())  # each with series of its own


def measure() -> Iterator[Measure]:
    """Microseconds a key."""
    without = _runs(_add_get_done)
    yield Measure.of("queue: add+get+done, no metrics", without, "us", "<= 1.2")
    counted = _runs(lambda: _add_get_done(QueueSeries(next(_NAMES))))
    yield Measure.of("queue: add+get+done, metrics", counted, "us", "<= 4")
    waits = _runs(_wait)
    yield Measure.of(f"queue: insert, {WAITING:,} waiting", [w[0] for w in waits], "us", "<= 2")
    yield Measure.of(f"queue: pop, {WAITING:,} waiting", [w[1] for w in waits], "us", "<= 8")
    yield Measure.of("no-op reconcile, metrics", _runs(_reconcile), "us", "<= 60")


def _runs(once: Callable[[], Coroutine[None, None, T]]) -> list[T]:
    return [uvloop.run(once()) for _ in range(RUNS)]


def _keys(count: int) -> list[Key]:
    return [("default", f"w{i}") for i in range(count)]


async def _add_get_done(series: QueueSeries | None = None) -> float:
    queue: WorkQueue[Key] = WorkQueue(clock=SystemClock(), metrics=series)
    keys = _keys(KEYS)
    began = time.process_time()
    for key in keys:
        queue.add(key)
        await queue.get()
        queue.done(key)
    return _microseconds(began, KEYS)


class _TurnedClock(SystemClock):
    """Time that can be moved on."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


async def _wait() -> tuple[float, float]:
    clock = _TurnedClock()
    queue: WorkQueue[Key] = WorkQueue(clock=clock)
    keys = _keys(WAITING)
    delays = [random.uniform(600, 1200) for _ in keys]  # noqa: S311 - no secret
    began = time.process_time()
    for key, delay in zip(keys, delays, strict=True):
        queue.add_after(key, delay)
    inserted = _microseconds(began, WAITING)
    clock.ahead = 1200
    began = time.process_time()
    await queue.get()  # all are due: each moves from the heap to its place among the ready
    popped = _microseconds(began, WAITING)
    queue.shutdown()
    return inserted, popped


async def _reconcile() -> float:
    left = KEYS
    all_done = asyncio.Event()

    async def reconcile(_: Key) -> Result:
        nonlocal left
        left -= 1
        if not left:
            all_done.set()
        return Result()

    controller = Controller(next(_NAMES), reconcile, clock=SystemClock(), workers=WORKERS)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(controller.run())
        await asyncio.sleep(0)
        keys = _keys(KEYS)
        began = time.process_time()
        for start in range(0, KEYS, WORKERS):
            for key in keys[start : start + WORKERS]:
                controller.enqueue(key)
            await asyncio.sleep(0)
        await all_done.wait()
        spent = _microseconds(began, KEYS)
        controller.stop()
    return spent


def _microseconds(began: float, count: int) -> float:
    return (time.process_time() - began) / count * 1e6
