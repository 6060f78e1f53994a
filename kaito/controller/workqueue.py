"""A queue of keys for one event loop: de-duplicating, delaying, with priorities.

In: keys, from informers' handlers and from workers' retries. Out: one key at a time to whoever
awaits ``get()``. A key is never in two hands: while one worker has it, further adds are remembered
once and served when that worker says ``done``. No payload travels: the worker reads the caches.

A key is in at most one of these places, and may have one delayed entry beside being in process:
ready, in process (perhaps wanted again), parked, delayed.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import itertools
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Sized
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

from kaito import metrics
from kaito.clock import Clock, Timer
from kaito.controller.backoff import ExponentialBackoff, Limiter

log = structlog.get_logger()

K = TypeVar("K", bound=Hashable)

LOW_PRIORITY: Final = -100
"""Of initial lists and resyncs: a change that a user made just now overtakes them."""

_REFRESH_SECONDS: Final = 0.5
_MAX_PRIORITY_LABELS: Final = 25
_COMPACT_ABOVE: Final = 64


class Shutdown(enum.Enum):
    """What ``get()`` returns when there will be no more keys."""

    SHUTDOWN = "shutdown"


class _Delayed(Generic[K]):
    """A wish for later. ``key`` None: overtaken, its heap entry waits to be dropped."""

    __slots__ = ("due", "key", "priority")

    def __init__(self, due: float, key: K, priority: int) -> None:
        self.due = due
        self.key: K | None = key
        self.priority = priority


class WorkQueue(Generic[K]):
    """See the module. All methods belong to one loop; only ``get`` waits.

    ``strict``: ``done`` of a key not in process raises (tests) instead of being logged.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        limiter: Limiter[K] | None = None,
        metrics: QueueMetrics | None = None,
        strict: bool = False,
    ) -> None:
        self._clock = clock
        self._limiter: Limiter[K] = limiter or ExponentialBackoff(clock=clock)
        self._metrics = metrics
        self._strict = strict
        self._priority: dict[K, int] = {}  # ready keys
        self._levels: dict[int, OrderedDict[K, None]] = {}
        self._order: list[int] = []  # negated priorities: highest first
        self._processing: dict[K, int] = {}  # with the priority of their run
        self._wanted: dict[K, int] = {}  # in process and added again
        self._parked: dict[K, int] = {}
        self._failures: dict[K, int] = {}
        self._delayed: dict[K, _Delayed[K]] = {}
        self._heap: list[tuple[float, int, _Delayed[K]]] = []
        self._sequence = itertools.count()
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self._getters: deque[asyncio.Future[None]] = deque()
        self._stopped = False
        self._draining = False
        self._level(0)

    def __len__(self) -> int:
        return len(self._priority)

    @property
    def processing(self) -> tuple[K, ...]:
        """Keys in workers' hands."""
        return tuple(self._processing)

    def add(self, key: K, priority: int = 0) -> None:
        """Make ready now. A present key with a lower priority is raised; nothing is doubled."""
        if self._heap:
            self._release_due()
        if key in self._parked:
            self._parked[key] = max(priority, self._parked[key])
            return
        if key in self._delayed:
            priority = max(priority, self._drop_delayed(key))
        if key in self._processing:
            if not self._stopped or self._draining:
                self._wanted[key] = max(priority, self._wanted.get(key, priority))
        elif not self._stopped:
            self._make_ready(key, priority)

    def add_after(self, key: K, seconds: float, priority: int | None = None) -> None:
        """Make ready in ``seconds``. The earliest wish of a key wins, a later one is ignored.

        ``priority`` None: that of the run in process, else 0.
        """
        if priority is None:
            priority = self._processing.get(key, 0)
        if seconds <= 0:
            self.add(key, priority)
            return
        if self._stopped:
            return
        if self._metrics is not None:
            self._metrics.retries.inc()
        if key in self._priority or key in self._wanted or key in self._parked:
            return
        self._delay(key, self._clock.monotonic() + seconds, priority)

    def add_rate_limited(self, key: K, *, at_least: float = 0.0) -> None:
        """Add after the limiter's next wait for this key, and not within ``at_least`` seconds."""
        self.add_after(key, max(self._limiter.when(key), at_least))

    def count_failure(self, key: K) -> int:
        """How often the key has failed since the last ``forget``, this time included.

        Not the limiter's count: failures that bring a wait of their own do not make it longer.
        """
        self._failures[key] = count = self._failures.get(key, 0) + 1
        return count

    def forget(self, key: K) -> None:
        """The key succeeded: its waits and failures start anew. Changes nothing in the queue."""
        self._failures.pop(key, None)
        self._limiter.forget(key)

    async def get(self) -> K | Shutdown:
        """Take the next key; it must come back by ``done`` or ``park``.

        Safe to cancel at any moment: the key stays in the queue until this returns.
        """
        while True:
            if self._heap:
                self._release_due()
            if self._priority:
                return self._take()
            if self._stopped and not (self._draining and self._processing):
                return Shutdown.SHUTDOWN
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except BaseException:
                if getter.cancelled() or not getter.done():
                    with suppress(ValueError):
                        self._getters.remove(getter)
                elif self._priority:
                    self._wake_one()  # the wake-up was for a key, not for this getter
                raise

    def done(self, key: K) -> None:
        """The worker is finished with the key; it is ready again if it was added meanwhile."""
        if key not in self._processing:
            if self._strict:
                raise RuntimeError(f"done({key!r}) of a key that is not in process")
            log.error("done with a key that is not in process", key=str(key))
            return
        if self._metrics is not None:
            self._metrics.finished(key, self._clock.monotonic())
        self._give_back(key)

    def park(self, key: K) -> None:
        """In place of ``done``: hold the key back, without a worker, until ``unpark``.

        It is not handed out meanwhile, however often it is added, and counts as one add.
        """
        priority = self._processing[key]
        priority = max(priority, self._wanted.pop(key, priority))
        if key in self._delayed:
            priority = max(priority, self._drop_delayed(key))
        if self._metrics is not None:
            self._metrics.parked(key)
        self._give_back(key)
        if not self._stopped:
            self._parked[key] = priority

    def unpark(self, key: K) -> None:
        """Make a parked key ready; harmless when it is not parked."""
        priority = self._parked.pop(key, None)
        if priority is not None:
            self._make_ready(key, priority, is_add=False)

    def shutdown(self, *, drain: bool = False) -> None:
        """Stop taking keys. Delayed and parked keys are dropped, those in process finish.

        ``drain``: ready keys, and those in process that were added again, are still handed out;
        without it they are dropped too, also when a drain is under way.
        """
        if self._stopped and (drain or not self._draining):
            return
        self._stopped = True
        self._draining = drain
        self._parked.clear()
        self._delayed.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not drain:
            self._wanted.clear()
            while self._priority:
                self._pop()
        if self._metrics is not None:
            self._metrics.stop()
        self._wake_all()

    def _give_back(self, key: K) -> None:
        del self._processing[key]
        priority = self._wanted.pop(key, None)
        if priority is not None:
            self._make_ready(key, priority)
        elif self._draining and not self._processing:
            if self._metrics is not None:
                self._metrics.stop()
            self._wake_all()

    def _take(self) -> K:
        key, priority = self._pop()
        self._processing[key] = priority
        if self._metrics is not None:
            self._metrics.started(key, self._clock)
        return key

    def _pop(self) -> tuple[K, int]:
        for negated in self._order:
            level = self._levels[-negated]
            if level:
                key, _ = level.popitem(last=False)
                return key, self._priority.pop(key)
        raise AssertionError("ready keys are in a level")

    def _make_ready(self, key: K, priority: int, *, is_add: bool = True) -> None:
        current = self._priority.get(key)
        if current is not None:
            if priority <= current:
                return
            del self._levels[current][key]
        elif self._metrics is not None and is_add:
            self._metrics.ready(key, self._clock.monotonic())
        level = self._level(priority)
        level[key] = None
        self._priority[key] = priority
        if self._getters:
            self._wake_one()

    def _level(self, priority: int) -> OrderedDict[K, None]:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = OrderedDict()
            insort(self._order, -priority)
            if self._metrics is not None:
                self._metrics.track_depth(priority, level)
        return level

    def _delay(self, key: K, due: float, priority: int) -> None:
        present = self._delayed.get(key)
        if present is not None:
            if due >= present.due:
                present.priority = max(priority, present.priority)
                return
            priority = max(priority, self._drop_delayed(key))
        entry = self._delayed[key] = _Delayed(due, key, priority)
        heapq.heappush(self._heap, (due, next(self._sequence), entry))
        self._arm()

    def _drop_delayed(self, key: K) -> int:
        """Forget the delayed entry; its heap place goes at its time, or with the next tidying."""
        entry = self._delayed.pop(key)
        entry.key = None
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * len(self._delayed):
            self._heap = [item for item in self._heap if item[2].key is not None]
            heapq.heapify(self._heap)
        return entry.priority

    def _release_due(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            key = heapq.heappop(self._heap)[2].key
            if key is None:
                continue
            priority = self._delayed.pop(key).priority
            if key in self._processing:
                self._wanted[key] = max(priority, self._wanted.get(key, priority))
            else:
                self._make_ready(key, priority)

    def _arm(self) -> None:
        """One timer, for the earliest entry."""
        due = self._heap[0][0]
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._clock.call_later(due - self._clock.monotonic(), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._release_due()
        if self._heap:
            self._arm()

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._getters:
            self._wake_one()


class QueueMetrics:
    """The ``workqueue_*`` series of one queue. Children are looked up once."""

    def __init__(self, name: str) -> None:
        labels = {"name": name, "controller": name}
        self._labels = labels
        self.retries = metrics.WORKQUEUE_RETRIES.labels(**labels)
        self._adds = metrics.WORKQUEUE_ADDS.labels(**labels)
        self._queue_seconds = metrics.WORKQUEUE_QUEUE_SECONDS.labels(**labels)
        self._work_seconds = metrics.WORKQUEUE_WORK_SECONDS.labels(**labels)
        self._unfinished = metrics.WORKQUEUE_UNFINISHED_SECONDS.labels(**labels)
        self._longest = metrics.WORKQUEUE_LONGEST_SECONDS.labels(**labels)
        self._levels: dict[int, Sized] = {}
        self._ready_at: dict[Hashable, float] = {}
        self._started_at: dict[Hashable, float] = {}
        self._timer: Timer | None = None

    def track_depth(self, priority: int, level: Sized) -> None:
        """Let the scrape read how many keys are ready at a priority: nothing to do per key.

        Beyond 25 priorities they share one series.
        """
        self._levels[priority] = level
        if len(self._levels) <= _MAX_PRIORITY_LABELS:
            gauge = metrics.WORKQUEUE_DEPTH.labels(**self._labels, priority=str(priority))
            gauge.set_function(lambda: len(level))
            return
        others = [*self._levels.values()][_MAX_PRIORITY_LABELS:]
        metrics.WORKQUEUE_DEPTH.labels(
            **self._labels, priority="exceeded_cardinality_limit"
        ).set_function(lambda: sum(map(len, others)))

    def ready(self, key: Hashable, now: float) -> None:
        """A key became ready."""
        self._adds.inc()
        self._ready_at[key] = now

    def started(self, key: Hashable, clock: Clock) -> None:
        """A worker took the key."""
        now = clock.monotonic()
        ready_at = self._ready_at.pop(key, None)
        if ready_at is not None:  # else it was parked: its wait is observed already
            self._queue_seconds.observe(now - ready_at)
        self._started_at[key] = now
        if self._timer is None:
            self._refresh(clock)

    def finished(self, key: Hashable, now: float) -> None:
        """The worker gave it back."""
        self._work_seconds.observe(now - self._started_at.pop(key, now))

    def parked(self, key: Hashable) -> None:
        """It was taken, but not worked on."""
        self._started_at.pop(key, None)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._ready_at.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refresh(self, clock: Clock) -> None:
        """Each half second while not idle: these two are gauges of a moment."""
        now = clock.monotonic()
        ages = [now - started for started in self._started_at.values()]
        self._unfinished.set(sum(ages))
        self._longest.set(max(ages, default=0.0))
        self._timer = None
        if ages:
            self._timer = clock.call_later(_REFRESH_SECONDS, lambda: self._refresh(clock))
