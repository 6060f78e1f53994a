"""One kind's cache with its readers: watchers in, a store inside, handlers out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypedDict, TypeVar, Unpack, cast

import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, ObjectMeta
from kaito.clock import Clock, time_limit
from kaito.errors import SyncTimeout
from kaito.informers import selectors
from kaito.informers.handlers import Handler, Handlers, Registration
from kaito.informers.lister import Lister
from kaito.informers.scope import Observer, Scope
from kaito.informers.store import IndexFunction, Joined, Store
from kaito.informers.watcher import Watcher
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)

MIN_RESYNC_SECONDS: Final = 1.0


class Selection(TypedDict, total=False):
    """What the server is asked for; see ``Informer``."""

    label_selector: str
    field_selector: str
    metadata_only: bool


class Options(Selection, total=False):
    """What an informer shows, and how; see ``Informer``."""

    namespaces: tuple[str, ...]
    optional: bool
    indexes: Mapping[str, IndexFunction[Any]]


class Informer(Generic[T]):
    """Keeps ``lister`` in step with the server and tells handlers of each change, in order.

    ``namespaces``: only these, with a watch for each, so that rights there are enough; none: all.
    ``metadata_only``: the server sends metadata alone; the kind's decoder must make do with it.
    ``optional``: a kind whose CRD may be missing; it does not hold up ``wait_synced``.
    ``indexes``: name to a function from an object to the values it is found under.
    ``on_relist``: called with the number of objects of each list but the first.

    Raises:
        ValueError: what was given as a selector is none.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        *,
        clock: Clock,
        namespaces: tuple[str, ...] = (),
        optional: bool = False,
        indexes: Mapping[str, IndexFunction[T]] | None = None,
        on_relist: Callable[[int], None] = lambda _count: None,
        **selection: Unpack[Selection],
    ) -> None:
        self.kind = kind
        self.optional = optional
        self.labels = (kind.resource, "metadata" if selection.get("metadata_only") else "full")
        self._label_terms = selectors.parse(selection.get("label_selector", ""))
        self._field_terms = selectors.parse(selection.get("field_selector", ""))
        self._clock = clock
        self._handlers: Handlers[T] = Handlers(self.labels, clock=clock)
        self._group: asyncio.TaskGroup | None = None
        self.scopes = tuple(
            Scope(n, Store(indexes, on_index_error=self._index_failed), self._handlers, on_relist)
            for n in dict.fromkeys(namespaces) or ("",)
        )
        self._watchers = tuple(
            Watcher(client, kind, scope, clock=clock, namespace=scope.namespace, **selection)
            for scope in self.scopes
        )
        stores = {scope.namespace: scope.store for scope in self.scopes}
        self.lister: Lister[T] = Joined(stores) if self.scopes[1:] else self.scopes[0].store
        """The cache. Answers at any time, also before the first list and after a stop."""

    def __len__(self) -> int:
        return sum(len(scope.store) for scope in self.scopes)

    # Reading ------------------------------------------------------------------------------------

    @property
    def resource_version(self) -> str:
        """How far the cache is, all of it."""
        return self.lister.resource_version

    @property
    def has_synced(self) -> bool:
        """The first complete list is in and handlers were told of it."""
        return self.lister.has_synced

    @property
    def is_served(self) -> bool:
        """False while the server says it has no such kind (its CRD is missing)."""
        return all(watcher.is_served for watcher in self._watchers)

    @property
    def last_error(self) -> str | None:
        """Why list or watch last failed, None since it works again."""
        return next((w.last_error for w in self._watchers if w.last_error is not None), None)

    @property
    def is_selective(self) -> bool:
        """It shows only what matches its selectors."""
        return bool(self._label_terms or self._field_terms)

    def selects(self, meta: ObjectMeta) -> bool:
        """An object with such metadata is one it shows, as far as metadata can tell."""
        fields = {"metadata.name": meta.name, "metadata.namespace": meta.namespace}
        known = [term for term in self._field_terms if term.key in fields]
        return selectors.match(self._label_terms, meta.labels) and selectors.match(known, fields)

    def staleness(self) -> float:
        """Seconds since a list or watch last brought a byte; attempts and refusals are none.

        Up to a minute is usual on a quiet kind, ten (a whole watch) on one without bookmarks.
        """
        return self._clock.monotonic() - min(watcher.last_byte for watcher in self._watchers)

    @property
    def idle_limit(self) -> float:
        """Seconds of silence that end a watch: longer for kinds without bookmarks."""
        return max(watcher.idle_limit for watcher in self._watchers)

    async def run(self) -> None:
        """Until cancelled; see ``Watcher.run``."""
        try:
            async with _first_failure() as self._group:
                for registration in self._handlers.registrations:
                    self._group.create_task(self._serve(registration))
                for watcher in self._watchers:
                    self._group.create_task(watcher.run())
        finally:
            self._group = None

    async def wait_synced(self) -> None:
        """Until ``has_synced``, or until an optional kind is known not to be served."""
        for scope in self.scopes:
            await (scope.answered if self.optional else scope.synced).wait()

    async def reached(self, version: str, timeout: float) -> None:
        """Until the cache is at this version or later.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds.
        """
        async with time_limit(self._clock, timeout):
            for scope in self.scopes:
                await scope.reached(version)

    # Registering --------------------------------------------------------------------------------

    def add_index(self, name: str, function: IndexFunction[T]) -> None:
        """Register an index; see ``Store.add_index``."""
        for scope in self.scopes:
            scope.store.add_index(name, function)

    def add_handler(self, handler: Handler[T], *, resync: float = 0.0) -> Registration[T]:
        """Tell a handler of what is there (flagged initial) and of every change from now on.

        A handler is called in the watch's own turn: it maps and enqueues. ``resync``: seconds until
        it alone hears of every object again, as an update from the same to the same; 0: never.

        Raises:
            ValueError: a resync more often than each second.
        """
        if resync and resync < MIN_RESYNC_SECONDS:
            raise ValueError(f"a resync each {resync:g} s is too often: at least 1, or 0 for none")
        registration = Registration(handler, self.lister, resync)
        self._handlers.add(registration)
        steps = self._handlers.replay(registration)
        if self._group is None:
            deque(steps, maxlen=0)
        elif self._handlers.piece(steps) or resync:
            self._group.create_task(self._serve(registration))
        return registration

    def remove_handler(self, registration: Registration[T]) -> None:
        """Never call it again. Harmless when it was removed before, or is another informer's."""
        self._handlers.remove(registration)

    def add_observer(self, observer: Observer) -> None:
        """Call after every step of the cache: with the changed key, None for a bookmark or list."""
        for scope in self.scopes:
            scope.observe(observer)

    async def _serve(self, registration: Registration[T]) -> None:
        """Tell a handler the rest of what it is behind with; then, where asked to, all again."""
        await self._handlers.in_pieces(self._handlers.replay(registration))
        while registration.resync_seconds and registration in self._handlers.registrations:
            await self._clock.sleep(registration.resync_seconds)
            async with self._handlers.telling:
                await self._handlers.in_pieces(self._handlers.resync(registration))

    def _index_failed(self, index: str, err: Exception) -> None:
        metrics.INFORMER_SKIPPED.labels(*self.labels, "index").inc()
        log.error("index function failed", kind=str(self.kind), index=index, error=repr(err))


class InformerSet:
    """One informer per kind, representation, namespaces and selectors, however many share it.

    ``on_relist``: called with the number of objects of each list but an informer's first.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        clock: Clock,
        on_relist: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._on_relist = on_relist
        self._informers: dict[tuple[object, ...], Informer[Any]] = {}
        self._group: asyncio.TaskGroup | None = None

    def informer(self, kind: Kind[T], **options: Unpack[Options]) -> Informer[T]:
        """Get or create. One that is there gets the indexes, and is optional only if all agree."""
        identity = _identity(kind, options)
        known = self._informers.get(identity)
        if known is not None:
            known.optional = known.optional and options.get("optional", False)
            for name, function in options.get("indexes", {}).items():
                known.add_index(name, function)
            return cast(Informer[T], known)
        made = Informer(self._client, kind, clock=self._clock, on_relist=self._on_relist, **options)
        self._informers[identity] = made
        self._export(made.labels)
        if self._group is not None:
            self._group.create_task(made.run())
        return made

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter(tuple(self._informers.values()))

    def lister(self, kind: Kind[T], **options: Unpack[Options]) -> Lister[T]:
        """The cache of the informer with these options; nothing starts by itself.

        Raises:
            LookupError: there is none; the message says how to register it.
        """
        informer = self._informers.get(_identity(kind, options))
        if informer is None:
            how = "ask for InformerSet.informer with the same options before start"
            raise LookupError(f"no informer of {kind} with {options}: {how}")
        return cast(Lister[T], informer.lister)

    async def run(self) -> None:
        """Run all, those asked for later too, until cancelled.

        Raises:
            InvalidRequest: the server refuses a field selector.
        """
        try:
            async with _first_failure() as self._group:
                for informer in self:
                    self._group.create_task(informer.run())
                await asyncio.Event().wait()
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

    def _export(self, labels: tuple[str, str]) -> None:
        """Gauges of all that share these labels: informers that differ in what they select."""
        alike = tuple(i for i in self if i.labels == labels)
        for gauge, value in (
            (metrics.INFORMER_OBJECTS, lambda: sum(map(len, alike))),
            (metrics.INFORMER_SYNCED, lambda: float(all(i.has_synced for i in alike))),
            (metrics.INFORMER_LAST_EVENT_AGE, lambda: max(i.staleness() for i in alike)),
        ):
            gauge.labels(*labels).set_function(value)


def _identity(kind: Kind[Any], options: Options) -> tuple[object, ...]:
    """What makes two informers the same one. Puts the namespaces in order."""
    options["namespaces"] = tuple(sorted(set(options.get("namespaces", ()))))
    wanted = ("namespaces", "label_selector", "field_selector", "metadata_only")
    return (kind, *(options.get(name) or None for name in wanted))


@asynccontextmanager
async def _first_failure() -> AsyncIterator[asyncio.TaskGroup]:
    """A group in which one fails and with it all end; bare, for whoever tells KaitoErrors apart."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
