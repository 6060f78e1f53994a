"""One watch of an informer, of everything or of one namespace, with its part of the cache."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.informers.handlers import Handlers, Registration
from kaito.informers.store import Store, differences, is_at_least

T = TypeVar("T", bound=ApiObject)

Observer = Callable[[Key | None], None]


class Scope(Generic[T]):
    """The watcher's sink: puts what it saw in the store, then tells handlers and observers.

    ``synced``: the first list was told. ``answered``: or the server said that it has no such kind.
    """

    def __init__(
        self,
        namespace: str,
        store: Store[T],
        handlers: Handlers[T],
        on_relist: Callable[[int], None],
    ) -> None:
        self.namespace = namespace
        self.store = store
        self.synced = asyncio.Event()
        self.answered = asyncio.Event()
        self._observers: tuple[Observer, ...] = ()
        self._handlers = handlers
        self._on_relist = on_relist
        self._events = {
            event: metrics.INFORMER_EVENTS.labels(*handlers.labels, event.lower())
            for event in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
        }

    @property
    def resource_version(self) -> str:
        """How far this part of the cache is."""
        return self.store.resource_version

    def observe(self, observer: Observer) -> None:
        """Call after every step: with the changed key, None for a bookmark or list."""
        self._observers = (*self._observers, observer)

    async def reached(self, version: str) -> None:
        """Until it is at the version or past it."""
        reached = asyncio.Event()

        def look(_key: Key | None) -> None:
            if is_at_least(self.store.resource_version, version):
                reached.set()

        look(None)
        self.observe(look)
        try:
            await reached.wait()
        finally:
            self._observers = tuple(o for o in self._observers if o is not look)

    # The watcher's side -------------------------------------------------------------------------

    def apply(self, event: str, obj: T) -> None:
        """One object changed."""
        store = self.store
        meta = obj.metadata
        changes = store.remove(meta.key, obj) if event == "DELETED" else store.apply(obj)
        store.advance(meta.resource_version)
        self._events[event].value += 1
        self._handlers.tell(self._handlers.registrations, changes)
        if self._observers:
            self._stepped(meta.key)

    def drop(self, key: Key, resource_version: str) -> None:
        """An object is gone, or is in a state that nobody here can read: not what we have."""
        changes = self.store.remove(key)
        self.store.advance(resource_version)
        self._handlers.tell(self._handlers.registrations, changes)
        self._stepped(key)

    def bookmark(self, resource_version: str) -> None:
        """Nothing changed up to here."""
        self.store.advance(resource_version)
        self._events["BOOKMARK"].value += 1
        self._stepped(None)

    async def replace(self, objects: Mapping[Key, T], resource_version: str) -> None:
        """A complete list: written aside, one step for readers, then the handlers.

        Cancelled before that step, it leaves all as it was. After it, handlers hear the rest at
        once: no later list would tell them of what the store has already.
        """
        store = self.store.successor()
        await self._handlers.in_pieces(map(store.apply, objects.values()))
        async with self._handlers.telling:
            await self._handlers.all_replayed()
            self.store.swap(store, resource_version)
            # Who is added from here on hears of the new state and of nothing that led to it.
            steps = self._tell_list(self._handlers.registrations, store, objects)
            try:
                await self._handlers.in_pieces(steps)
            finally:
                deque(steps, maxlen=0)

    async def not_served(self) -> None:
        """The kind is gone: so are its objects, and handlers hear of it."""
        if len(self.store):
            await self.replace({}, "")
        self.answered.set()
        self._stepped(None)

    def _tell_list(
        self, registrations: tuple[Registration[T], ...], before: Store[T], after: Mapping[Key, T]
    ) -> Iterator[None]:
        is_first = not self.store.has_synced
        for change in differences(before, after, initial=is_first):
            if change is not None:
                self._handlers.tell(registrations, (change,))
            yield
        yield from before.clear()
        if not is_first:
            self._on_relist(len(after))
        self.store.has_synced = True
        self.synced.set()
        self.answered.set()
        self._stepped(None)

    def _stepped(self, key: Key | None) -> None:
        for observe in self._observers:
            observe(key)
