"""One kind's cache with its readers: a watcher in, a store inside, handlers out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock, time_limit
from kaito.errors import SyncTimeout
from kaito.informers.handlers import Change, Handler
from kaito.informers.lister import Lister
from kaito.informers.store import IndexFunction, Store
from kaito.informers.watcher import Watcher
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)

SLOW_HANDLER_SECONDS = 0.001
SLOW_HANDLER_QUIET_SECONDS = 60.0


class _Registration(Generic[T]):
    """A handler while it is registered. ``handler`` None: removed, maybe in this very turn."""

    def __init__(self, handler: Handler[T]) -> None:
        self.handler: Handler[T] | None = handler
        self.name = getattr(handler, "__qualname__", repr(handler))
        self.slow_logged = float("-inf")


class Informer(Generic[T]):
    """Keeps ``lister`` in step with the server and tells handlers of each change, in order.

    ``metadata_only``: the server sends metadata alone; the kind's decoder must make do with it.
    ``optional``: a kind whose CRD may be missing; it does not hold up ``wait_synced``.
    ``indexes``: name to a function from an object to the values it is found under.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        *,
        clock: Clock,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
        optional: bool = False,
        indexes: Mapping[str, IndexFunction[T]] | None = None,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.optional = optional
        self._clock = clock
        self._store: Store[T] = Store(indexes, on_index_error=self._index_failed)
        self._registrations: tuple[_Registration[T], ...] = ()
        self._observers: tuple[Callable[[Key | None], None], ...] = ()
        self._settled = asyncio.Event()
        self._watcher: Watcher[T] = Watcher(
            client,
            kind,
            self,
            clock=clock,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            metadata_only=metadata_only,
        )
        self._labels = (kind.resource, "metadata" if metadata_only else "full")
        self._events = {
            event: metrics.INFORMER_EVENTS.labels(*self._labels, event.lower())
            for event in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
        }
        metrics.INFORMER_SYNCED.labels(*self._labels).set(0)
        metrics.INFORMER_OBJECTS.labels(*self._labels).set_function(self._store.__len__)
        metrics.INFORMER_LAST_EVENT_AGE.labels(*self._labels).set_function(self.staleness)

    # Reading ------------------------------------------------------------------------------------

    @property
    def lister(self) -> Lister[T]:
        """The cache. Answers at any time, also before the first list and after a stop."""
        return self._store

    @property
    def resource_version(self) -> str:
        """How far the cache is."""
        return self._store.resource_version

    @property
    def has_synced(self) -> bool:
        """The first complete list is in and handlers were told of it."""
        return self._store.has_synced

    @property
    def is_served(self) -> bool:
        """False while the server says it has no such kind (its CRD is missing)."""
        return self._watcher.is_served

    @property
    def last_error(self) -> str | None:
        """Why list or watch last failed, None since it works again."""
        return self._watcher.last_error

    def staleness(self) -> float:
        """Seconds since a list or watch last brought a byte; attempts and refusals are none.

        Up to a minute is usual on a quiet kind, ten (a whole watch) on one without bookmarks.
        """
        return self._clock.monotonic() - self._watcher.last_byte

    async def run(self) -> None:
        """Until cancelled; see ``Watcher.run``."""
        await self._watcher.run()

    async def wait_synced(self) -> None:
        """Until ``has_synced``, or until an optional kind is known not to be served."""
        await self._settled.wait()

    # Registering --------------------------------------------------------------------------------

    def add_index(self, name: str, function: IndexFunction[T]) -> None:
        """Register an index; see ``Store.add_index``."""
        self._store.add_index(name, function)

    def add_handler(self, handler: Handler[T]) -> Callable[[], None]:
        """Tell a handler of what is there (flagged initial) and of every change from now on.

        A handler is called in the watch's own turn: it maps and enqueues. Returns its removal,
        after which it is never called; calling that twice is harmless.
        """
        registration = _Registration(handler)
        # No await between replay and registration: nothing is lost or doubled at the seam (S8).
        self._tell((registration,), [_present(obj) for obj in self._store.list()])
        self._registrations = (*self._registrations, registration)

        def remove() -> None:
            registration.handler = None
            self._registrations = tuple(r for r in self._registrations if r is not registration)

        return remove

    def add_observer(self, observer: Callable[[Key | None], None]) -> None:
        """Call after every step of the cache: with the changed key, None for a bookmark or list."""
        self._observers = (*self._observers, observer)

    # The watcher's sink -------------------------------------------------------------------------

    def apply(self, event: str, obj: T) -> None:
        """One object changed."""
        store = self._store
        key = obj.metadata.key
        changes = store.remove(key, obj) if event == "DELETED" else store.apply(obj)
        store.advance(obj.metadata.resource_version)
        self._events[event].inc()
        self._tell(self._registrations, changes)
        for observe in self._observers:
            observe(key)

    def drop(self, key: Key, resource_version: str) -> None:
        """An object is gone, or is in a state that nobody here can read: not what we have."""
        changes = self._store.remove(key)
        self._store.advance(resource_version)
        self._tell(self._registrations, changes)
        for observe in self._observers:
            observe(key)

    def bookmark(self, resource_version: str) -> None:
        """Nothing changed up to here."""
        self._store.advance(resource_version)
        self._events["BOOKMARK"].inc()
        for observe in self._observers:
            observe(None)

    def replace(self, objects: Mapping[Key, T], resource_version: str) -> None:
        """A complete list: one step for readers, then the handlers."""
        changes: Iterable[Change[T]] = self._store.replace(objects, resource_version)
        if not self._store.has_synced:
            changes = [_present(change.obj) for change in changes]
        self._tell(self._registrations, changes)
        self._store.has_synced = True
        self._settled.set()
        metrics.INFORMER_SYNCED.labels(*self._labels).set(1)
        for observe in self._observers:
            observe(None)

    def not_served(self) -> None:
        """The kind is gone: so are its objects, and handlers hear of it."""
        if len(self._store):
            self._tell(self._registrations, self._store.replace({}, ""))
        self._store.resource_version = ""
        if self.optional:
            self._settled.set()
        for observe in self._observers:
            observe(None)

    def _tell(
        self, registrations: tuple[_Registration[T], ...], changes: Iterable[Change[T]]
    ) -> None:
        monotonic = self._clock.monotonic
        for change in changes:
            for registration in registrations:
                handler = registration.handler
                if handler is None:
                    continue
                began = monotonic()
                try:
                    handler(change)
                except Exception:
                    metrics.INFORMER_HANDLER_ERRORS.labels(*self._labels).inc()
                    log.exception("handler failed", handler=registration.name, kind=str(self.kind))
                if monotonic() - began > SLOW_HANDLER_SECONDS:
                    self._warn_slow(registration, monotonic() - began)

    def _warn_slow(self, registration: _Registration[T], seconds: float) -> None:
        now = self._clock.monotonic()
        if now - registration.slow_logged >= SLOW_HANDLER_QUIET_SECONDS:
            registration.slow_logged = now
            log.warning("slow handler", handler=registration.name, seconds=seconds)

    def _index_failed(self, index: str, err: Exception) -> None:
        metrics.INFORMER_SKIPPED.labels(*self._labels, "index").inc()
        log.error("index function failed", kind=str(self.kind), index=index, error=repr(err))


class InformerSet:
    """One informer per kind, representation, namespace and selectors, however many share it."""

    def __init__(self, client: KubeClient, *, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._informers: dict[tuple[object, ...], Informer[Any]] = {}
        self._group: asyncio.TaskGroup | None = None

    def informer(
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
        optional: bool = False,
        indexes: Mapping[str, IndexFunction[T]] | None = None,
    ) -> Informer[T]:
        """Get or create. One that is there gets the indexes, and is optional only if all agree."""
        identity = (kind, namespace, label_selector, field_selector, metadata_only)
        known = self._informers.get(identity)
        if known is not None:
            known.optional = known.optional and optional
            for name, function in (indexes or {}).items():
                known.add_index(name, function)
            return cast(Informer[T], known)
        made = Informer(
            self._client,
            kind,
            clock=self._clock,
            namespace=namespace,
            label_selector=label_selector,
            field_selector=field_selector,
            metadata_only=metadata_only,
            optional=optional,
            indexes=indexes,
        )
        self._informers[identity] = made
        if self._group is not None:
            self._group.create_task(_watch_for_ever(made))
        return made

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter(tuple(self._informers.values()))

    def lister(self, kind: Kind[T]) -> Lister[T]:
        """The cache of a kind that has an informer; nothing starts by itself.

        Raises:
            LookupError: it has none; the message says how to register it.
        """
        for informer in self._informers.values():
            if informer.kind == kind:
                return cast(Lister[T], informer.lister)
        raise LookupError(f"no informer of {kind}: ask for InformerSet.informer(kind) before start")

    async def run(self) -> None:
        """Run all, those asked for later too, until cancelled.

        Raises:
            InvalidRequest: the server refuses a field selector.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for informer in self._informers.values():
                    group.create_task(_watch_for_ever(informer))
                await asyncio.Event().wait()
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # one fails, and with it all end
        finally:
            self._group = None

    async def wait_synced(self, timeout: float) -> None:
        """Until every informer has synced (or is optional and not served).

        Raises:
            SyncTimeout: after ``timeout`` seconds; names the kinds and what they last met.
        """
        try:
            async with time_limit(self._clock, timeout):
                for informer in self:
                    await informer.wait_synced()
        except TimeoutError as err:
            late = [i for i in self._informers.values() if not i.has_synced]
            causes = "; ".join(f"{i.kind}: {i.last_error or 'no answer yet'}" for i in late)
            raise SyncTimeout(f"caches not synced after {timeout:g} s: {causes}") from err


def _present(obj: T) -> Change[T]:
    return Change(None, obj, initial=True, relisted=True)


async def _watch_for_ever(informer: Informer[Any]) -> None:
    await informer.run()
    raise RuntimeError(f"the informer of {informer.kind} ended by itself")  # facts P4
