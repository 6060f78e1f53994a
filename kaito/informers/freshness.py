"""Read-your-own-writes: a key does not run again before the cache has seen what it wrote.

Nothing is polled: the watch moves the cache, the cache settles the writes. Rules A1 to A4 of the
facts, G16 and G17. Resource versions compare as integers within one kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, Key, ObjectMeta
from kaito.clock import Clock, Timer
from kaito.errors import KaitoError
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer
from kaito.informers.scope import Scope
from kaito.informers.store import is_at_least
from kaito.kube.client import Written
from kaito.kube.resources import Kind

log = structlog.get_logger()

Owner = tuple[str, Key]
"""(controller, key): whose reconcile wrote."""

CURRENT: ContextVar[Owner | None] = ContextVar("kaito_current_reconcile", default=None)
"""Set by the worker for the length of a reconcile."""

LOOK_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
GIVE_UP_SECONDS: Final = 30.0

LiveRead = Callable[[Kind[Any], str, str], Awaitable[ApiObject | None]]

_Target = tuple[str, Key]
"""(kind, key): what was written."""


@dataclass(eq=False, slots=True)
class _Pending:
    """One write that a cache has still to show, or may have: then only a live read can tell.

    ``live``: the object as such a read found it.
    """

    owner: Owner
    target: _Target
    written: Written
    since: float
    live: ObjectMeta | None = None
    is_late: bool = False

    def outdoes(self, other: Written) -> bool:
        """The other write came earlier to the same object, whatever its reply did."""
        mine, version = self.written, other.resource_version
        return (
            mine.uid == other.uid
            and bool(mine.resource_version and version)
            and mine.resource_version != version
            and is_at_least(mine.resource_version or "", version or "")
        )

    def __str__(self) -> str:
        (kind, key), (controller, owner) = self.target, self.owner
        return f"{kind} {'/'.join(key)} by {controller} {'/'.join(owner)}"


class Freshness:
    """Which reconcile keys wait for which of their own writes.

    ``read``: one live read of an object, for writes whose outcome is unknown and for those that do
    not show up within 5 s; served by ``run``. Without it such a key runs after 30 s, as every
    other that waits in vain does (fail open, counted).
    """

    def __init__(self, *, clock: Clock, read: LiveRead | None = None) -> None:
        self._clock = clock
        self._read = read
        self._informers: dict[str, list[Informer[Any]]] = {}  # by kind
        self._writes: dict[_Target, dict[Owner, _Pending]] = {}  # the last of each owner
        self._owners: dict[Owner, set[_Target]] = {}  # the same, the other way round
        self._callbacks: dict[Owner, list[Callable[[], None]]] = {}
        self._checks: asyncio.Queue[_Pending] = asyncio.Queue()
        self._timer: Timer | None = None

    def track(self, informer: Informer[Any]) -> None:
        """Wait for this informer's cache as well when its kind was written.

        Writes to kinds that are not tracked are not waited for.
        """
        resource = informer.kind.resource
        known = self._informers.setdefault(resource, [])
        if informer not in known:
            known.append(informer)
            informer.add_observer(partial(self._advance, resource))

    # Writing ------------------------------------------------------------------------------------

    def on_written(self, written: Written) -> None:
        """For ``KubeClient.on_written``: book the write to the reconcile that is running."""
        owner = CURRENT.get()
        if owner is not None:
            self.record(owner, written)

    def record(self, owner: Owner, written: Written) -> None:
        """``owner`` wrote; an echo that reached the cache before the reply counts as seen."""
        resource, key = written.kind.resource, (written.namespace, written.name)
        if resource not in self._informers:
            return
        target = (resource, key)
        pending = _Pending(owner, target, written, self._clock.monotonic())
        known = self._writes.get(target, {}).get(owner)
        if known is not None and known.outdoes(written):
            return  # two replies crossed
        self._writes.setdefault(target, {})[owner] = pending
        self._owners.setdefault(owner, set()).add(target)
        behind = self._behind(pending)
        if not behind:
            self._settle(pending)
            return
        # Whether a cache that selects will ever hold what it does not yet, its labels tell.
        is_hidden = any(i.is_selective and i.lister.get(*key) is None for i in behind)
        if is_hidden or written.resource_version is None:
            self._checks.put_nowait(pending)
        if self._timer is None:
            self._timer = self._clock.call_later(LOOK_SECONDS, self._look)

    def is_echo(self, owner: Owner, kind: Kind[Any], change: Change[Any]) -> bool:
        """The change is nothing but the write that ``owner`` waits for. To be asked in a handler.

        Only while it waits: a key that ran meanwhile did not see this state. Only of an event of
        the watch: what a list shows may be others' changes as well, below our version. To every
        other key it is news: the Machine that a Workspace's pass made has a reconcile of its own.
        """
        new = change.new
        if new is None or change.relisted or owner not in self._owners:
            return False
        meta = new.metadata
        pending = self._writes.get((kind.resource, meta.key), {}).get(owner)
        if pending is None or not pending.written.exclusive:
            return False
        written = pending.written
        return (written.uid, written.resource_version) == (meta.uid, meta.resource_version)

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

    # Settling -----------------------------------------------------------------------------------

    def _advance(self, resource: str, key: Key | None) -> None:
        """A cache moved. Hot: called once per event, mostly with nothing to do.

        An event shows the writes to its own object, a bookmark or a list may show any.
        """
        if not self._writes:
            return
        if key is not None:
            moved = [(resource, key)]
        else:
            moved = [target for target in self._writes if target[0] == resource]
        for target in moved:
            for pending in tuple(self._writes.get(target, {}).values()):
                if not self._behind(pending):
                    self._settle(pending)

    def _behind(self, pending: _Pending) -> list[Informer[Any]]:
        """Those whose cache will show the write and has not done so yet (G17)."""
        written, live = pending.written, pending.live
        return [
            informer
            for informer in self._informers[written.kind.resource]
            if (live is None or informer.selects(live))
            and not all(_shows(scope, written) for scope in informer.scopes)
        ]

    def _settle(self, pending: _Pending, *, is_in_vain: bool = False) -> None:
        """Wait for it no more. With the last one of its key go those who wait for the key."""
        if not self._is_open(pending):
            return
        owner, target = pending.owner, pending.target
        del self._writes[target][owner]
        if not self._writes[target]:
            del self._writes[target]
        self._owners[owner].remove(target)
        if not self._owners[owner]:
            del self._owners[owner]
            callbacks = self._callbacks.pop(owner, ())
            if callbacks and is_in_vain:
                metrics.STALE_CACHE_TIMEOUTS.labels(owner[0]).inc()
            for callback in callbacks:
                callback()

    def _is_open(self, pending: _Pending) -> bool:
        """Neither settled nor superseded by a later write of its owner."""
        return self._writes.get(pending.target, {}).get(pending.owner) is pending

    # What does not show up ----------------------------------------------------------------------

    async def run(self) -> None:
        """Carry out live reads, one after another, until cancelled."""
        while True:
            pending = await self._checks.get()
            if self._read is None or not self._is_open(pending):
                continue
            try:
                live = await self._read(pending.written.kind, *pending.target[1])
            except KaitoError as err:
                log.warning("live check failed", written=str(pending), error=str(err))
            else:
                self._learn(pending, live)

    def _learn(self, pending: _Pending, live: ApiObject | None) -> None:
        """A live read tells what caches have to reach: this version, or absence."""
        if live is None:
            pending.written = replace(pending.written, resource_version="", deleted=True)
        else:
            pending.live = live.metadata
            if pending.written.resource_version is None:
                version = live.metadata.resource_version
                pending.written = replace(pending.written, resource_version=version)
        if not self._behind(pending):
            self._settle(pending)

    def _look(self) -> None:
        """Each second while anything waits: look after what has waited for long."""
        now = self._clock.monotonic()
        for pending in [p for writes in self._writes.values() for p in writes.values()]:
            waited = now - pending.since
            if waited >= GIVE_UP_SECONDS:
                log.warning("gave up waiting for the cache", written=str(pending))
                self._settle(pending, is_in_vain=True)
            elif waited >= CHECK_SECONDS and not pending.is_late:
                pending.is_late = True
                log.warning("cache is late", written=str(pending))
                self._checks.put_nowait(pending)
        self._timer = self._clock.call_later(LOOK_SECONDS, self._look) if self._writes else None


def _shows(scope: Scope[Any], written: Written) -> bool:
    """It has come as far as the write, or is of another namespace."""
    if scope.namespace not in ("", written.namespace):
        return True
    if written.deleted:
        stored = scope.store.get(written.namespace, written.name)
        return stored is None or written.uid not in ("", stored.metadata.uid)
    version = written.resource_version
    if version is None or not version.isdecimal():
        return version is not None  # what cannot be compared fails open
    return is_at_least(scope.resource_version, version)
