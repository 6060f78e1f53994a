"""N workers over one queue: events in, reconciles out."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from structlog.contextvars import bind_contextvars

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock, time_limit
from kaito.controller.backoff import Limiter
from kaito.controller.worker import Reconcile, Worker
from kaito.controller.workqueue import LOW_PRIORITY, Shutdown, WorkQueue
from kaito.errors import SyncTimeout
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer
from kaito.informers.predicates import resource_version_changed

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)

_PROCESS: Final = secrets.token_hex(4)
_RUNS: Final = itertools.count(1)  # reconcile_id is unique with the two: an eighth of uuid4's cost


@dataclass(eq=False)
class Controller:
    """Calls ``reconcile`` for keys that something happened to, one call per key at a time.

    Each call is a task of its own: what it leaves in contextvars, frames or tracebacks goes with
    it, and no call can take a worker down.

    Before ``run`` it hears nothing: a standby keeps no keys, as at the start the caches tell of
    every object that is there then.
    """

    name: str
    reconcile: Reconcile
    _: KW_ONLY
    clock: Clock
    freshness: Freshness | None = None
    limiter: Limiter[Key] | None = None
    workers: int = 8
    timeout: float = 120.0
    sync_timeout: float = 120.0

    def __post_init__(self) -> None:
        series = metrics.QueueSeries(self.name)
        self._queue: WorkQueue[Key] = WorkQueue(
            clock=self.clock, limiter=self.limiter, metrics=series
        )
        self._informers: list[Informer[Any]] = []  # that it waits for
        self._sources: list[Callable[[asyncio.TaskGroup], Callable[[], object]]] = []
        self._early: dict[Key, float] = {}  # enqueued before the start, in order
        self._tasks: asyncio.TaskGroup | None = None  # while it runs
        self._started = ExitStack()  # stops the sources that were started
        self._arrived: dict[Key, float] = {}
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._worker = Worker(self.name, self.reconcile, self._queue, self.clock, self.timeout)
        self._latency = metrics.EVENT_TO_RECONCILE_SECONDS.labels(self.name)
        metrics.STALE_CACHE_WAITS.labels(self.name)  # at 0 from the start
        metrics.STALE_CACHE_TIMEOUTS.labels(self.name)
        metrics.ACTIVE_WORKERS.labels(self.name).set_function(lambda: len(self._running))
        metrics.MAX_CONCURRENT_RECONCILES.labels(self.name).set(self.workers)

    def __str__(self) -> str:
        keys = ", ".join("/".join(key) for key in self._running)
        return f"controller {self.name} ({keys})" if keys else f"controller {self.name}"

    @property
    def running(self) -> tuple[Key, ...]:
        """Keys being reconciled now."""
        return tuple(self._running)

    def unsynced(self) -> list[str]:
        """The kinds it still waits for, each with what it last met."""
        required = [i for i in self._informers if i.is_served or not i.optional]
        return [f"{i.kind}: {i.last_error or 'no answer'}" for i in required if not i.has_synced]

    # Sources: each may be added before the start, when it waits for it, or after, when it counts
    # at once.

    def watch(
        self,
        informer: Informer[T],
        to_keys: Callable[[Change[T]], Iterable[Key] | None],
        *,
        predicate: Callable[[Change[T]], bool] | None = None,
    ) -> None:
        """Enqueue ``to_keys`` of every change that ``predicate`` lets pass.

        The echo of a key's own last write never enqueues that key (rule G16). Objects of the first
        list and resyncs yield to changes made just now.
        """
        freshness = self.freshness

        def handle(change: Change[Any]) -> None:
            if predicate is not None and not predicate(change):
                return
            is_news = resource_version_changed(change) and not change.initial
            priority = 0 if is_news else LOW_PRIORITY
            for key in to_keys(change) or ():
                owner = (self.name, key)
                if freshness is not None and freshness.is_echo(owner, informer.kind, change):
                    continue
                self._arrived.setdefault(key, self.clock.monotonic())
                self._queue.add(key, priority)

        handle.__qualname__ = f"controller {self.name}"  # what a slow handler is called in the log
        if freshness is not None:
            freshness.track(informer)
        self._informers.append(informer)
        self._add(lambda _: partial(informer.remove_handler, informer.add_handler(handle)))

    def follow(self, keys: AsyncIterable[Key]) -> None:
        """Enqueue every key of a stream: a channel, a timer (``ticks``), a foreign watch.

        A stream may end; one that raises ends ``run`` with its error.
        """

        async def enqueue_all() -> None:
            async for key in keys:
                self.enqueue(key)

        self._add(lambda tasks: tasks.create_task(enqueue_all()).cancel)

    def enqueue(self, key: Key, *, after: float = 0.0) -> None:
        """Look at a key, for sources that are neither informers nor streams.

        ``after``: seconds, counted from the start if that is still to come.
        """
        if self._tasks is None:
            self._early[key] = min(after, self._early.get(key, after))
            return
        if after <= 0:
            self._arrived.setdefault(key, self.clock.monotonic())
        self._queue.add_after(key, after)

    def _add(self, start: Callable[[asyncio.TaskGroup], Callable[[], object]]) -> None:
        """A source: ``start`` returns what stops it."""
        self._sources.append(start)
        if self._tasks is not None:
            self._started.callback(start(self._tasks))

    # Running ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Wait for the caches, then work until ``stop()`` or cancellation.

        Raises:
            SyncTimeout: caches did not sync in time; names the controller, the kinds and why.
        """
        await self._wait_synced()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                with self._started:
                    for start in self._sources:
                        self._started.callback(start(tasks))
                    for key, after in self._early.items():
                        self.enqueue(key, after=after)
                    self._early.clear()
                    log.info("started controller", controller=self.name, workers=self.workers)
                    await self._hand_out(tasks)
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # a stream failed, and with it all end
        finally:
            self._queue.shutdown()

    def stop(self) -> None:
        """Take no new key; ``run`` returns when those in process are done."""
        self._queue.shutdown()

    async def _wait_synced(self) -> None:
        try:
            async with time_limit(self.clock, self.sync_timeout):
                for informer in self._informers:
                    await informer.wait_synced()
        except TimeoutError as err:
            causes = "; ".join(self.unsynced())
            message = f"controller {self.name} not started in {self.sync_timeout:g} s: {causes}"
            raise SyncTimeout(message) from err

    async def _hand_out(self, tasks: asyncio.TaskGroup) -> None:
        free = asyncio.Semaphore(self.workers)
        while True:
            await free.acquire()
            key = await self._queue.get()
            if isinstance(key, Shutdown):
                return
            owner = (self.name, key)
            if self.freshness is not None and self.freshness.pending(owner):
                # Parked until the cache has seen what this key itself wrote last (rule G17).
                self._queue.park(key)
                self.freshness.on_fresh(owner, partial(self._queue.unpark, key))
                free.release()
                continue
            task = tasks.create_task(self._run_one(key), name=f"{self.name} {key}")
            self._running[key] = task
            task.add_done_callback(partial(self._finished, key, free))

    async def _run_one(self, key: Key) -> None:
        if (arrived := self._arrived.pop(key, None)) is not None:
            self._latency.observe(self.clock.monotonic() - arrived)
        run = f"{_PROCESS}-{next(_RUNS):x}"
        bind_contextvars(controller=self.name, namespace=key[0], name=key[1], reconcile_id=run)
        CURRENT.set((self.name, key))
        try:
            await self._worker.process(key)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                log.error("reconcile cancelled itself", controller=self.name)
                self._queue.add_rate_limited(key)  # nobody asked for it: the key is still wanted
            raise

    def _finished(self, key: Key, free: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
        # A callback of the task, as one that is cancelled before its first step runs no finally.
        del self._running[key]
        self._queue.done(key)
        free.release()


async def ticks(clock: Clock, seconds: float, *keys: Key) -> AsyncIterator[Key]:
    """A stream for ``follow``: the keys, again and again, ``seconds`` apart."""
    while True:
        await clock.sleep(seconds)
        for key in keys:
            yield key
