"""Read-your-own-writes: a key does not run again before the cache has seen what it wrote.

Nothing is polled: the watch moves the cache, the cache settles the writes. Rules A1 to A4 of the
facts, G16 and G17. Resource versions compare as integers within one kind.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock, Timer
from kaito.errors import KaitoError
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer
from kaito.informers.store import is_at_least
from kaito.kube.client import Written
from kaito.kube.resources import Kind

log = structlog.get_logger()

Owner = tuple[str, Key]
"""(controller, key): whose reconcile wrote."""

CURRENT: ContextVar[Owner | None] = ContextVar("kaito_current_reconcile", default=None)
"""Set by the worker for the length of a reconcile."""

CHECK_SECONDS: Final = 5.0
GIVE_UP_SECONDS: Final = 30.0

LiveRead = Callable[[Kind[Any], str, str], Awaitable[ApiObject | None]]


class _Pending:
    """One write that the cache has not shown yet. ``version`` None: deleted, or not known."""

    def __init__(self, owner: Owner, written: Written, since: float) -> None:
        self.owner = owner
        self.kind = written.kind
        self.key = (written.namespace, written.name)
        self.uid = written.uid
        self.version = written.resource_version
        self.is_delete = written.deleted
        self.is_exclusive = written.exclusive
        self.since = since
        self.is_settled = False
        self.is_late = False

    @property
    def is_unknown(self) -> bool:
        """Written or not: only a live read can tell."""
        return self.version is None and not self.is_delete

    @property
    def due(self) -> float:
        """When someone has to look after it."""
        return self.since + (GIVE_UP_SECONDS if self.is_late else CHECK_SECONDS)

    def __str__(self) -> str:
        return f"{self.kind} {'/'.join(self.key)} by {self.owner[0]} {'/'.join(self.owner[1])}"


@dataclass(slots=True)
class _Tracked:
    """The pending writes of one kind: numbered ones by version, the others by key."""

    informer: Informer[Any]
    versions: list[tuple[int, int, _Pending]] = field(default_factory=list)
    others: dict[Key, list[_Pending]] = field(default_factory=dict)


class Freshness:
    """Which reconcile keys wait for which of their own writes.

    ``read``: one live read of an object, for writes whose outcome is unknown and for those that do
    not show up within 5 s; served by ``run``. Without it such a key runs after 30 s, as every
    other that waits in vain does (fail open, counted).
    """

    def __init__(self, *, clock: Clock, read: LiveRead | None = None) -> None:
        self._clock = clock
        self._read = read
        self._kinds: dict[str, _Tracked] = {}
        self._owners: dict[Owner, dict[tuple[str, Key], _Pending]] = {}
        self._callbacks: dict[Owner, list[Callable[[], None]]] = {}
        self._checks: deque[_Pending] = deque()
        self._has_checks = asyncio.Event()
        self._timer: Timer | None = None
        self._order = itertools.count()

    def track(self, informer: Informer[Any]) -> None:
        """Let this informer settle writes of its kind; the first of a kind is the one that counts.

        Writes to kinds that are not tracked are not waited for.
        """
        tracked = _Tracked(informer)
        if self._kinds.setdefault(informer.kind.resource, tracked) is tracked:
            informer.add_observer(lambda key: self._advance(tracked, key))

    # Writing ------------------------------------------------------------------------------------

    def on_written(self, written: Written) -> None:
        """For ``KubeClient.on_written``: book the write to the reconcile that is running."""
        owner = CURRENT.get()
        if owner is not None:
            self.record(owner, written)

    def record(self, owner: Owner, written: Written) -> None:
        """``owner`` wrote; an echo that reached the cache before the reply counts as seen."""
        identity = (written.kind.resource, (written.namespace, written.name))
        tracked = self._kinds.get(written.kind.resource)
        if tracked is None or tracked.informer.namespace not in ("", written.namespace):
            return
        writes = self._owners.setdefault(owner, {})
        earlier = writes.pop(identity, None)
        if earlier is not None:
            earlier.is_settled = True
        pending = writes[identity] = _Pending(owner, written, self._clock.monotonic())
        self._file(tracked, pending)
        if pending.is_unknown:
            self._check(pending)
        if self._timer is None and self._owners:
            self._timer = self._clock.call_later(CHECK_SECONDS, self._look)

    def is_echo(self, owner: Owner, kind: Kind[Any], change: Change[Any]) -> bool:
        """The change is nothing but the write that ``owner`` waits for. To be asked in a handler.

        Only while it waits: a key that ran meanwhile did not see this state. Only of an event of
        the watch: what a list shows may be others' changes as well, below our version. To every
        other key it is news: the Machine that a Workspace's pass made has a reconcile of its own.
        """
        new = change.new
        if new is None or change.relisted:
            return False
        meta = new.metadata
        pending = self._owners.get(owner, {}).get((kind.resource, meta.key))
        return (
            pending is not None
            and pending.is_exclusive
            and (pending.uid, pending.version) == (meta.uid, meta.resource_version)
        )

    # Waiting ------------------------------------------------------------------------------------

    def pending(self, owner: Owner) -> bool:
        """The cache has not shown all that this key wrote."""
        return owner in self._owners

    def on_fresh(self, owner: Owner, callback: Callable[[], None]) -> None:
        """Call once when nothing is pending any more; at once if nothing is."""
        if owner not in self._owners:
            callback()
            return
        metrics.STALE_CACHE_WAITS.labels(owner[0]).inc()
        self._callbacks.setdefault(owner, []).append(callback)

    def forget(self, owner: Owner) -> None:
        """The key is gone for good: drop what it waits for, calling nobody."""
        self._callbacks.pop(owner, None)
        for pending in self._owners.pop(owner, {}).values():
            pending.is_settled = True

    # Settling -----------------------------------------------------------------------------------

    def _advance(self, tracked: _Tracked, key: Key | None) -> None:
        """The cache moved. Hot: called once per event, mostly with nothing to do."""
        versions = tracked.versions
        if versions:
            current = tracked.informer.resource_version
            while versions and is_at_least(current, str(versions[0][0])):
                self._settle(heapq.heappop(versions)[2])
        if tracked.others:
            for candidate in (key,) if key is not None else tuple(tracked.others):
                for pending in tracked.others.pop(candidate, ()):
                    self._file(tracked, pending)

    def _file(self, tracked: _Tracked, pending: _Pending) -> None:
        """Settle a write that the cache shows, else put it where the cache will find it."""
        if pending.is_settled or _is_seen(tracked.informer, pending):
            self._settle(pending)
        elif pending.version is not None and not pending.is_delete:
            entry = (int(pending.version), next(self._order), pending)
            heapq.heappush(tracked.versions, entry)
        else:
            tracked.others.setdefault(pending.key, []).append(pending)

    def _settle(self, pending: _Pending) -> None:
        if pending.is_settled:
            return
        pending.is_settled = True
        writes = self._owners[pending.owner]
        del writes[pending.kind.resource, pending.key]
        if not writes:
            del self._owners[pending.owner]
            for callback in self._callbacks.pop(pending.owner, ()):
                callback()

    # What does not show up ----------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out live reads, one after another, until cancelled."""
        while True:
            await self._has_checks.wait()
            self._has_checks.clear()
            while self._checks:
                pending = self._checks.popleft()
                if self._read is None or pending.is_settled:
                    continue
                try:
                    obj = await self._read(pending.kind, *pending.key)
                except KaitoError as err:
                    log.warning("live check failed", written=str(pending), error=str(err))
                else:
                    self._learn(pending, obj)

    def _learn(self, pending: _Pending, live: ApiObject | None) -> None:
        """A live read tells what the cache has to reach: this version, or absence."""
        if pending.is_unknown or live is None:
            pending.is_delete = live is None
            pending.version = live.metadata.resource_version if live is not None else None
            self._file(self._kinds[pending.kind.resource], pending)

    def _check(self, pending: _Pending) -> None:
        self._checks.append(pending)
        self._has_checks.set()

    def _look(self) -> None:
        """Look after what has waited for long; one timer for all, none while nothing waits."""
        self._timer = None
        now = self._clock.monotonic()
        released: set[Owner] = set()
        for pending in [p for writes in self._owners.values() for p in writes.values()]:
            if now - pending.since >= GIVE_UP_SECONDS:
                log.warning("gave up waiting for the cache", written=str(pending))
                if pending.owner in self._callbacks:
                    released.add(pending.owner)
                self._settle(pending)
            elif now - pending.since >= CHECK_SECONDS and not pending.is_late:
                pending.is_late = True
                log.warning("cache is late", written=str(pending))
                self._check(pending)
        for controller, _ in released:
            metrics.STALE_CACHE_TIMEOUTS.labels(controller).inc()
        waits = [p.due for writes in self._owners.values() for p in writes.values()]
        if waits:
            self._timer = self._clock.call_later(min(waits) - now, self._look)
        else:
            for tracked in self._kinds.values():
                tracked.versions.clear()
                tracked.others.clear()


def _is_seen(informer: Informer[Any], pending: _Pending) -> bool:
    stored = informer.lister.get(*pending.key)
    if pending.is_delete:
        return stored is None or pending.uid not in ("", stored.metadata.uid)
    if pending.version is None:
        return False
    if not pending.version.isdecimal():
        return True  # versions that cannot be compared: better an early run than none
    if is_at_least(informer.resource_version, pending.version):
        return True
    return stored is not None and is_at_least(stored.metadata.resource_version, pending.version)
