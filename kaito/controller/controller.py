"""N workers over one queue: events in, reconciles out."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import structlog
from structlog.contextvars import bind_contextvars

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock
from kaito.controller.backoff import ExponentialBackoff
from kaito.controller.worker import Reconcile, WorkerMetrics, process
from kaito.controller.workqueue import LOW_PRIORITY, QueueMetrics, Shutdown, WorkQueue
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change, Handler
from kaito.informers.informer import Informer

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)


class Controller:
    """Calls ``reconcile`` for keys that something happened to, one call per key at a time.

    Each call is a task of its own: what it leaves in contextvars, frames or tracebacks goes with
    it, and no call can take a worker down.

    Before ``run`` it hears nothing: a standby keeps no keys, as at the start the caches tell of
    every object that is there then.
    """

    def __init__(
        self,
        name: str,
        reconcile: Reconcile,
        *,
        clock: Clock,
        freshness: Freshness | None = None,
        workers: int = 8,
        timeout: float = 120.0,
    ) -> None:
        self.name = name
        self._reconcile = reconcile
        self._clock = clock
        self._freshness = freshness
        self._workers = workers
        self._timeout = timeout
        self._queue: WorkQueue[Key] = WorkQueue(
            clock=clock, limiter=ExponentialBackoff(clock=clock), metrics=QueueMetrics(name)
        )
        self._sources: list[tuple[Informer[Any], Handler[Any]]] = []
        self._has_started = False
        self._early: dict[Key, None] = {}  # enqueued before the start, in order
        self._arrived: dict[Key, float] = {}
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._metrics = WorkerMetrics(name)
        self._active = metrics.ACTIVE_WORKERS.labels(name)
        self._latency = metrics.EVENT_TO_RECONCILE_SECONDS.labels(name)
        for series in (metrics.STALE_CACHE_WAITS, metrics.STALE_CACHE_TIMEOUTS):
            series.labels(name)  # at 0 from the start
        metrics.MAX_CONCURRENT_RECONCILES.labels(name).set(workers)

    @property
    def running(self) -> tuple[Key, ...]:
        """Keys being reconciled now."""
        return tuple(self._running)

    def watch(
        self,
        informer: Informer[T],
        to_keys: Callable[[Change[T]], Iterable[Key] | None],
        *,
        predicate: Callable[[Change[T]], bool] | None = None,
    ) -> None:
        """Enqueue ``to_keys`` of every change that ``predicate`` lets pass; also after start.

        The echo of a key's own last write never enqueues that key (rule G16). Objects of the first
        list and resyncs yield to changes made just now.
        """
        freshness = self._freshness

        def handle(change: Change[T]) -> None:
            old, new = change.old, change.new
            if predicate is not None and not predicate(change):
                return
            resync = (
                old is not None
                and new is not None
                and old.metadata.resource_version == new.metadata.resource_version
            )
            priority = LOW_PRIORITY if change.initial or resync else 0
            for key in to_keys(change) or ():
                owner = (self.name, key)
                if freshness is not None and freshness.is_echo(owner, informer.kind, change):
                    continue
                self._arrived.setdefault(key, self._clock.monotonic())
                self._queue.add(key, priority)

        if freshness is not None:
            freshness.track(informer)
        self._sources.append((informer, handle))
        if self._has_started:
            informer.add_handler(handle)

    def enqueue(self, key: Key, *, after: float = 0.0) -> None:
        """Look at a key, for sources that are no informers; before the start, at the start."""
        if not self._has_started:
            self._early[key] = None
            return
        if after <= 0:
            self._arrived.setdefault(key, self._clock.monotonic())
        self._queue.add_after(key, after)

    async def run(self) -> None:
        """Wait for the caches, then work until ``stop()`` or cancellation."""
        for informer, _ in self._sources:
            await informer.wait_synced()
        self._has_started = True
        for informer, handle in self._sources:
            informer.add_handler(handle)
        for key in self._early:
            self.enqueue(key)
        self._early.clear()
        log.info("started controller", controller=self.name, workers=self._workers)
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._hand_out(tasks)
        finally:
            self._queue.shutdown()

    def stop(self) -> None:
        """Take no new key; ``run`` returns when those in process are done."""
        self._queue.shutdown()

    async def _hand_out(self, tasks: asyncio.TaskGroup) -> None:
        free = asyncio.Semaphore(self._workers)
        while True:
            await free.acquire()
            key = await self._queue.get()
            if isinstance(key, Shutdown):
                return
            if self._is_stale(key):
                free.release()
                continue
            task = tasks.create_task(self._run_one(key), name=f"{self.name} {key}")
            self._running[key] = task
            self._active.inc()
            task.add_done_callback(partial(self._finished, key, free))

    async def _run_one(self, key: Key) -> None:
        if (arrived := self._arrived.pop(key, None)) is not None:
            self._latency.observe(self._clock.monotonic() - arrived)
        namespace, name = key
        bind_contextvars(
            controller=self.name, namespace=namespace, name=name, reconcile_id=str(uuid.uuid4())
        )
        CURRENT.set((self.name, key))
        try:
            await process(
                key,
                self._reconcile,
                self._queue,
                clock=self._clock,
                timeout=self._timeout,
                metrics=self._metrics,
            )
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                log.error("reconcile cancelled itself", controller=self.name)
                self._queue.add_rate_limited(key)  # nobody asked for it: the key is still wanted
            raise

    def _finished(self, key: Key, free: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
        # A callback of the task, as one that is cancelled before its first step runs no finally.
        del self._running[key]
        self._active.dec()
        self._queue.done(key)
        free.release()

    def _is_stale(self, key: Key) -> bool:
        """Park a key whose own last write the cache has not seen yet (rule G17)."""
        owner = (self.name, key)
        if self._freshness is None or not self._freshness.pending(owner):
            return False
        self._queue.park(key)
        self._freshness.on_fresh(owner, lambda: self._queue.unpark(key))
        return True
