"""The cloud's informer: one shared list, the last good snapshot, and who is to be told of changes.

No reconciler ever asks the cloud what it has. The list runs often while something is under way and
rarely otherwise, at once (but not in a burst) when asked to. A failed list changes nothing: absence
is read only from a complete one, and for a call of our own only from one that began after it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import structlog

from kaito.clock import Clock
from kaito.errors import After, CloudError
from kaito.metrics import INSTANCES, INVENTORY_AGE, INVENTORY_FAILURES
from kaito.provisioner.asks import Asks, Call
from kaito.provisioner.interface import ClusterInfo, Instance, InstanceState, NodeBackend

log = structlog.get_logger()

_SETTLED: Final = frozenset({InstanceState.READY, InstanceState.FAILED})
_LEAST_GAP_SECONDS: Final = 1.0
_NOT_READY: Final = frozenset({"CredentialInvalid", "CredentialMissing", "ClusterNotFound"})
"""Causes that only a person can mend (facts P6.2)."""


def spread() -> float:
    """A factor of 0.9 to 1.1, so that replicas and restarts do not list in step."""
    return random.uniform(0.9, 1.1)  # noqa: S311 - not a secret


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One complete list. Times are the boot clock's: what was true is older than ``started``."""

    instances: Mapping[str, Instance]
    started: float
    finished: float


@dataclass(slots=True)
class Inventory:
    """Polls ``backend.list()``. Reads are plain attributes; ``run()`` is the one task.

    ``cluster``: read once, before the first list: it proves the credentials and names the region
    that remedies speak of (facts P5.8).

    ``jitter``: a factor around 1 for each pause. ``asks``: our own calls, and how the lists keep
    up with them.
    """

    backend: NodeBackend
    clock: Clock
    busy_seconds: float = 10.0
    idle_seconds: float = 120.0
    jitter: Callable[[], float] = spread
    cluster: ClusterInfo | None = field(default=None, init=False)
    latest: Snapshot | None = field(default=None, init=False)
    failure: CloudError | None = field(default=None, init=False)
    asks: Asks = field(default_factory=Asks, init=False)
    _listeners: list[Callable[[str], None]] = field(default_factory=list, init=False)
    _waiters: dict[str, int] = field(default_factory=dict, init=False)
    _begun: int = field(default=0, init=False)
    _not_before: float = field(default=float("-inf"), init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def add_listener(self, callback: Callable[[str], None]) -> None:
        """Be told the claim names whose instance appeared, changed, vanished, or that waited."""
        self._listeners.append(callback)

    def look_soon(self) -> None:
        """List as soon as may be: after a call of our own. Any number of calls is one list."""
        self._asked.set()

    def wake_after(self, name: str) -> None:
        """Tell the listeners ``name`` once a list that begins after now is done (rule G16)."""
        self._waiters[name] = self._begun

    def asked(self, name: str, call: Call) -> None:
        """A call of our own for ``name`` was answered."""
        is_listed = self.latest is not None and name in self.latest.instances
        self.asks.note(name, call, now=self.clock.monotonic(), is_listed=is_listed)

    def is_awaited(self, name: str) -> bool:
        """No list has begun and ended since our last call for ``name``."""
        return name in self._waiters

    def problem(self) -> str | None:
        """What ``/readyz`` is to say; None when the cloud can be listed, or soon can be again."""
        if self.failure is not None and (self.latest is None or self.failure.reason in _NOT_READY):
            return f"{self.failure} ({self.failure.remedy})"
        return "the cloud's first list is under way" if self.latest is None else None

    async def run(self) -> None:
        """List for ever."""
        INVENTORY_AGE.set_function(self._age)
        while True:
            self._asked.clear()
            pause = await self._list()
            await self._pause(pause * self.jitter())

    async def _list(self) -> float:
        """One list; seconds to the next by its outcome."""
        self._begun += 1
        number, started = self._begun, self.clock.monotonic()
        self._not_before = started + _LEAST_GAP_SECONDS
        try:
            if self.cluster is None:
                self.cluster = await self.backend.cluster()
            found = await self.backend.list()
        except CloudError as err:
            return self._failed(err)
        previous = self.latest.instances if self.latest is not None else {}
        current = {instance.name: instance for instance in found}
        self.latest = Snapshot(MappingProxyType(current), started, self.clock.monotonic())
        self.failure = None
        self.asks.compare(current)
        self._count(current)
        served = {name for name, asked_at in self._waiters.items() if asked_at < number}
        for name in served:
            del self._waiters[name]
        names = previous.keys() | current.keys()
        self._tell({n for n in names if previous.get(n) != current.get(n)} | served)
        return self._pace(current)

    def _failed(self, err: CloudError) -> float:
        INVENTORY_FAILURES.inc()
        log.warning("inventory list failed", reason=err.reason, error=str(err))
        is_news = self.failure is None or self.failure.reason != err.reason
        self.failure = err
        if is_news:
            self._tell(set(self._waiters))  # they still wait, and can now say what for
        asked = err.retry.seconds if isinstance(err.retry, After) else 0.0
        self._not_before = self.clock.monotonic() + asked  # nobody's haste cuts this short
        return max(self.busy_seconds, asked)

    def _pace(self, current: Mapping[str, Instance]) -> float:
        is_busy = (
            self._waiters
            or self.asks.is_any_unshown
            or any(i.is_ours and i.state not in _SETTLED for i in current.values())
        )
        return self.busy_seconds if is_busy else self.idle_seconds

    async def _pause(self, seconds: float) -> None:
        timer = self.clock.call_later(seconds, self._asked.set)
        try:
            await self._asked.wait()
        finally:
            timer.cancel()
        gap = self._not_before - self.clock.monotonic()
        if gap > 0:
            await self.clock.sleep(gap)

    def _tell(self, names: set[str]) -> None:
        for name in sorted(names):
            for listener in self._listeners:
                listener(name)

    def _age(self) -> float:
        if self.latest is None:
            return float("inf")
        return self.clock.monotonic() - self.latest.finished

    def _count(self, current: Mapping[str, Instance]) -> None:
        INSTANCES.clear()
        types = Counter(i.instance_type for i in current.values() if i.is_ours)
        for instance_type, count in types.items():
            INSTANCES.labels(instance_type).set(count)
