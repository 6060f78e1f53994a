"""A queue of keys for one event loop: de-duplicating, delaying, with priorities.

In: keys, from informers' handlers and from workers' retries. Out: one key at a time to whoever
awaits ``get()``. A key is never in two hands: while one worker has it, further adds are remembered
once and served when that worker says ``done``. No payload travels: the worker reads the caches.

A key that is anywhere has one entry, in one place: ready, in process, parked, or waiting for its
time. One in process may have a wish too: it was added again meanwhile, now or for later.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from bisect import insort
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Generic, Literal, TypeVar

import msgspec
import structlog

from kaito.clock import Clock, Timer
from kaito.controller.backoff import ExponentialBackoff, Limiter
from kaito.metrics import QueueSeries

log = structlog.get_logger()

K = TypeVar("K", bound=Hashable)

LOW_PRIORITY: Final = -100
"""Of initial lists and resyncs: a change that a user made just now overtakes them."""

_COMPACT_ABOVE: Final = 64
_NOW: Final = 0.0


class Shutdown(Enum):
    """What ``get()`` returns when there will be no more keys."""

    SHUTDOWN = "shutdown"


# msgspec structs where the house uses dataclasses: one or two are made per key, at a quarter of the
# cost, and 200,000 waiting keys are none of the garbage collector's business.
class _Entry(msgspec.Struct, Generic[K], gc=False, eq=False):
    """A key that is somewhere. Gone with its last place, so that nothing refers to the key.

    ``since``: ready or in process, for the metrics; None when its wait is observed already.
    """

    key: K
    place: Literal["ready", "process", "parked", "waiting"] = "waiting"
    priority: int = 0
    wish: _Wish[K] | None = None
    since: float | None = None


class _Wish(msgspec.Struct, Generic[K], gc=False, eq=False):
    """To be ready later. ``key`` None: overtaken, its place in the heap is dropped in time.

    ``due``: ``_NOW`` when its key is in process and it only waits for ``done``, in no heap.
    """

    due: float
    key: K | None
    priority: int


@dataclass(eq=False, kw_only=True)
class WorkQueue(Generic[K]):
    """See the module. All methods belong to one loop; only ``get`` waits.

    ``strict``: ``done`` of a key not in process raises (tests) instead of being logged.
    """

    clock: Clock
    limiter: Limiter[K] | None = None
    metrics: QueueSeries | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        self._limiter: Limiter[K] = self.limiter or ExponentialBackoff(clock=self.clock)
        self._entries: dict[K, _Entry[K]] = {}
        self._levels: dict[int, OrderedDict[_Entry[K], None]] = {}  # ready ones by priority
        self._order: list[int] = []  # negated priorities: highest first
        self._ready = 0
        self._in_process: set[_Entry[K]] = set()
        self._heap: list[tuple[float, int, _Wish[K]]] = []
        self._overtaken = 0
        self._sequence = itertools.count()
        self._timer: Timer | None = None
        self._timer_due = 0.0
        self._getters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._stopped = False
        self._draining = False
        if self.metrics is not None:
            self.metrics.show_ages(self._ages)
        self._add_level(0)

    def __len__(self) -> int:
        return self._ready

    def add(self, key: K, priority: int = 0) -> None:
        """Make ready now. A present key with a lower priority is raised; nothing is doubled."""
        if self._heap:
            self._release_due()
        entry = self._entries.get(key)
        if entry is None:
            if self._stopped:
                return
            entry = self._entries[key] = _Entry(key)
            self._make_ready(entry, priority)
            return
        if entry.wish is not None:
            priority = max(priority, self._overtake(entry))
        self._bring(entry, priority)

    def add_after(self, key: K, seconds: float, priority: int | None = None) -> None:
        """Make ready in ``seconds``. The earliest wish of a key wins, a later one is ignored.

        ``priority`` None: that of the run in process, else 0.
        """
        entry = self._entries.get(key)
        if priority is None:
            priority = entry.priority if entry is not None and entry.place == "process" else 0
        if seconds <= 0:
            self.add(key, priority)
            return
        if self._stopped:
            return
        if self.metrics is not None:
            self.metrics.retries.inc()
        if entry is None:
            entry = self._entries[key] = _Entry(key)
        elif entry.place in ("ready", "parked"):
            return
        due = self.clock.monotonic() + seconds
        if entry.wish is not None:
            if due >= entry.wish.due:
                entry.wish.priority = max(priority, entry.wish.priority)
                return
            priority = max(priority, self._overtake(entry))
        entry.wish = _Wish(due, key, priority)
        heapq.heappush(self._heap, (due, next(self._sequence), entry.wish))
        if self._timer is None or due < self._timer_due:
            self._arm()

    def add_rate_limited(self, key: K, priority: int | None = None, at_least: float = 0.0) -> None:
        """Add after the limiter's next wait for this key, and not within ``at_least`` seconds."""
        self.add_after(key, max(self._limiter.when(key), at_least), priority)

    def num_requeues(self, key: K) -> int:
        """How often the limiter has made the key wait since the last ``forget``."""
        return self._limiter.num_requeues(key)

    def forget(self, key: K) -> None:
        """The key succeeded: its waits start anew. Changes nothing in the queue."""
        self._limiter.forget(key)

    async def get(self) -> K | Shutdown:
        """Take the next key; it must come back by ``done`` or ``park``.

        Safe to cancel at any moment: the key stays in the queue until this returns.
        """
        while True:
            if self._heap:
                self._release_due()
            if self._ready:
                return self._take()
            if self._stopped and not (self._draining and self._in_process):
                return Shutdown.SHUTDOWN
            getter = asyncio.get_running_loop().create_future()
            self._getters[getter] = None
            try:
                await getter
            except BaseException:
                if getter in self._getters:
                    del self._getters[getter]
                elif self._ready:
                    self._wake_one()  # the wake-up was for a key, not for this getter
                raise

    def done(self, key: K) -> None:
        """The worker is finished with the key; it is ready again if it was added meanwhile."""
        entry = self._entries.get(key)
        if entry is None or entry.place != "process":
            if self.strict:
                raise RuntimeError(f"done({key!r}) of a key that is not in process")
            log.error("done with a key that is not in process", key=str(key))
            return
        if self.metrics is not None and entry.since is not None:
            self.metrics.work_seconds.observe(self.clock.monotonic() - entry.since)
        self._in_process.remove(entry)
        wish = entry.wish
        entry.place = "waiting"
        if wish is None:
            del self._entries[key]
        elif wish.due == _NOW:
            entry.wish = None
            self._make_ready(entry, wish.priority)
        if self._draining:
            self._wake_all()

    def park(self, key: K) -> None:
        """In place of ``done``: hold the key back, without a worker, until ``unpark``.

        It is not handed out meanwhile, however often it is added, and counts as one add.
        """
        entry = self._entries[key]
        self._in_process.remove(entry)
        entry.place, entry.since = "parked", None
        if entry.wish is not None:
            entry.priority = max(entry.priority, self._overtake(entry))
        if self._stopped:
            del self._entries[key]
            self._wake_all()

    def unpark(self, key: K) -> None:
        """Make a parked key ready; harmless when it is not parked."""
        entry = self._entries.get(key)
        if entry is not None and entry.place == "parked":
            self._make_ready(entry, entry.priority)

    def shutdown(self, *, drain: bool = False) -> None:
        """Stop taking keys. Delayed and parked keys are dropped, those in process finish.

        ``drain``: ready keys, and those in process that were added again, are still handed out;
        without it they are dropped too, also when a drain is under way.
        """
        if self._stopped and (drain or not self._draining):
            return
        self._stopped = True
        self._draining = drain
        kept = ("process", "ready") if drain else ("process",)
        self._entries = {key: e for key, e in self._entries.items() if e.place in kept}
        for entry in self._entries.values():
            if not drain or (entry.wish is not None and entry.wish.due != _NOW):
                entry.wish = None
        if not drain:
            self._levels.clear()
            self._order.clear()
            self._ready = 0
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_all()

    def _bring(self, entry: _Entry[K], priority: int) -> None:
        """Add an entry that may be anywhere."""
        match entry.place:
            case "waiting":
                self._make_ready(entry, priority)
            case "process":
                if not self._stopped or self._draining:
                    entry.wish = _Wish(_NOW, entry.key, priority)
            case "parked":
                entry.priority = max(priority, entry.priority)
            case "ready":
                if priority > entry.priority:
                    del self._levels[entry.priority][entry]
                    self._ready -= 1
                    self._make_ready(entry, priority)

    def _make_ready(self, entry: _Entry[K], priority: int) -> None:
        if self.metrics is not None and entry.place == "waiting":  # elsewhere it was counted
            self.metrics.adds.inc()
            entry.since = self.clock.monotonic()
        entry.place = "ready"
        entry.priority = priority
        level = self._levels.get(priority)
        if level is None:
            level = self._add_level(priority)
        level[entry] = None
        self._ready += 1
        if self._getters:
            self._wake_one()

    def _take(self) -> K:
        while not (level := self._levels[-self._order[0]]):
            del self._levels[-self._order.pop(0)]
        entry, _ = level.popitem(last=False)
        self._ready -= 1
        entry.place = "process"
        self._in_process.add(entry)
        if self.metrics is not None:
            now = self.clock.monotonic()
            if entry.since is not None:
                self.metrics.queue_seconds.observe(now - entry.since)
            entry.since = now
        return entry.key

    def _add_level(self, priority: int) -> OrderedDict[_Entry[K], None]:
        level = self._levels[priority] = OrderedDict()
        insort(self._order, -priority)
        if self.metrics is not None:
            self.metrics.show_depth(priority, self._levels)
        return level

    def _overtake(self, entry: _Entry[K]) -> int:
        """Drop its wish, whose place in the heap goes at its time, or with the next tidying."""
        wish, entry.wish = entry.wish, None
        assert wish is not None
        wish.key = None
        self._overtaken += wish.due != _NOW
        if self._overtaken > _COMPACT_ABOVE and 2 * self._overtaken > len(self._heap):
            self._heap = [item for item in self._heap if item[2].key is not None]
            heapq.heapify(self._heap)
            self._overtaken = 0
        return wish.priority

    def _release_due(self) -> None:
        now = self.clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            wish = heapq.heappop(self._heap)[2]
            if wish.key is None:
                self._overtaken -= 1
                continue
            entry = self._entries[wish.key]
            entry.wish = None
            self._bring(entry, wish.priority)

    def _arm(self) -> None:
        """One timer, for the earliest wish."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = self._heap[0][0]
        wait = self._timer_due - self.clock.monotonic()
        self._timer = self.clock.call_later(wait, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._release_due()
        if self._heap:
            self._arm()

    def _wake_one(self) -> None:
        while self._getters:
            getter, _ = self._getters.popitem(last=False)
            if not getter.done():
                getter.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._getters:
            self._wake_one()

    def _ages(self) -> list[float]:
        """Seconds since each key in process was taken. Also called from the scrape's thread."""
        now = self.clock.monotonic()
        return [now - (entry.since or now) for entry in tuple(self._in_process)]
