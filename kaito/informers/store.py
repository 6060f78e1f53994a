"""The cache of one watch: a single writer (the watcher), any number of readers.

Writes are plain functions that return the changes they made; telling handlers is the informer's
business. Readers get tuples, so nothing handed out changes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Generic, TypeVar

from kaito.api.meta import ApiObject, Key
from kaito.informers import selectors
from kaito.informers.handlers import Change

T = TypeVar("T", bound=ApiObject)

IndexFunction = Callable[[T], Iterable[str]]


def is_at_least(have: str, want: str) -> bool:
    """``have`` is ``want`` or later. Numbers within one resource; anything else only if equal."""
    if have.isdecimal() and want.isdecimal():
        return int(have) >= int(want)
    return have == want


class _Index(Generic[T]):
    """Objects by the values of a function; by uid, so that a name's reuse cannot mix them up."""

    def __init__(self, values: IndexFunction[T], on_error: Callable[[Exception], None]) -> None:
        self.function = values
        self._on_error = on_error
        self._filed: dict[str, tuple[str, ...]] = {}  # by uid
        self._values: dict[str, dict[str, T]] = {}  # by value, then uid

    def find(self, value: str) -> tuple[T, ...]:
        found = self._values.get(value)
        return tuple(found.values()) if found else ()

    def put(self, uid: str, obj: T) -> None:
        """Hot: once per event and index, mostly a new state in the place of the old one."""
        try:
            values = tuple(self.function(obj))
        except Exception as err:  # noqa: BLE001  someone else's function: the object stays readable
            self._on_error(err)
            values = ()
        if self._filed.get(uid) != values:
            self.drop(uid)
            self._filed[uid] = values
        for value in values:
            objects = self._values.get(value)
            if objects is None:
                objects = self._values[value] = {}
            objects[uid] = obj

    def drop(self, uid: str) -> None:
        for value in set(self._filed.pop(uid, ())):
            objects = self._values[value]
            del objects[uid]
            if not objects:
                del self._values[value]


class Store(Generic[T]):
    """Objects by key, by namespace and by index. Implements ``Lister``.

    ``on_index_error``: called with the index's name when its function raised; the object is stored
    and missing from that index.
    """

    def __init__(
        self,
        indexes: Mapping[str, IndexFunction[T]] | None = None,
        *,
        on_index_error: Callable[[str, Exception], None] = lambda _name, _err: None,
    ) -> None:
        self.resource_version = ""
        self.has_synced = False
        self._number = -1  # the version as one, for comparing
        self._on_index_error = on_index_error
        self._objects: dict[str, dict[str, T]] = {}  # by namespace, then name
        self._all: tuple[T, ...] | None = ()
        self._indexes: dict[str, _Index[T]] = {}
        for name, function in (indexes or {}).items():
            self.add_index(name, function)

    def __len__(self) -> int:
        return sum(map(len, self._objects.values()))

    # Reading ------------------------------------------------------------------------------------

    def get(self, namespace: str, name: str) -> T | None:
        """One object; None when the cache has none."""
        names = self._objects.get(namespace)
        return names.get(name) if names is not None else None

    def list(self, namespace: str | None = None, *, selector: str = "") -> tuple[T, ...]:
        """See ``Lister.list``. All of them: the same tuple until something changes."""
        if namespace is not None:
            found = tuple(self._objects.get(namespace, {}).values())
        else:
            if self._all is None:
                names = self._objects.values()
                self._all = tuple(chain.from_iterable(map(dict.values, names)))
            found = self._all
        if not selector:
            return found
        requirements = selectors.parse(selector)
        return tuple(o for o in found if selectors.match(requirements, o.metadata.labels))

    def by_index(self, index: str, value: str) -> tuple[T, ...]:
        """Objects filed under the value.

        Raises:
            KeyError: no such index.
        """
        return self._indexes[index].find(value)

    # Writing: the watcher only ------------------------------------------------------------------

    def add_index(self, name: str, function: IndexFunction[T]) -> None:
        """Register an index, filling it with what is there. The same one again is harmless.

        Raises:
            ValueError: the name stands for another function.
        """
        known = self._indexes.get(name)
        if known is not None:
            if known.function is not function:
                raise ValueError(f"index {name!r} is registered with another function")
            return
        index = self._indexes[name] = _Index(function, lambda e: self._on_index_error(name, e))
        for obj in self.list():
            index.put(obj.metadata.uid, obj)

    def apply(self, obj: T) -> tuple[Change[T], ...]:
        """Store an added or modified object. Another uid under its key: a delete and an add."""
        meta = obj.metadata
        names = self._objects.get(meta.namespace)
        if names is None:
            names = self._objects[meta.namespace] = {}
        old = names.get(meta.name)
        names[meta.name] = obj
        self._all = None
        uid = meta.uid
        for index in self._indexes.values():
            index.put(uid, obj)
        if old is None or old.metadata.uid == uid:
            return (Change(old, obj),)
        for index in self._indexes.values():
            index.drop(old.metadata.uid)
        return (Change(old, None), Change(None, obj))

    def remove(self, key: Key, last: T | None = None) -> tuple[Change[T], ...]:
        """Drop what is under the key; the change shows ``last``, its final state, if known."""
        namespace, name = key
        names = self._objects.get(namespace, {})
        old = names.pop(name, None)
        if old is None:
            return ()
        if not names:
            del self._objects[namespace]
        self._all = None
        for index in self._indexes.values():
            index.drop(old.metadata.uid)
        return (Change(last if last is not None else old, None),)

    def advance(self, resource_version: str) -> None:
        """Note how far the watch has come. Never back: a late duplicate moves nothing."""
        if resource_version.isdecimal():
            number = int(resource_version)
            if number <= self._number:
                return
            self._number = number
        elif not resource_version:
            return
        else:
            self._number = -1
        self.resource_version = resource_version

    def start_from(self, resource_version: str) -> None:
        """Note where a new list, or nothing, leaves the cache: also back."""
        self._number = -1
        self.resource_version = ""
        self.advance(resource_version)

    def successor(self) -> Store[T]:
        """An empty one with the same indexes, for writing a list aside."""
        functions = {name: index.function for name, index in self._indexes.items()}
        return Store(functions, on_index_error=self._on_index_error)

    def swap(self, successor: Store[T], resource_version: str) -> None:
        """Show what the other holds, in one step; it holds then what was here."""
        for name, index in self._indexes.items():  # some were asked for meanwhile
            successor.add_index(name, index.function)
        self._objects, successor._objects = successor._objects, self._objects
        self._indexes, successor._indexes = successor._indexes, self._indexes
        self._all = successor._all = None
        self.start_from(resource_version)

    def clear(self) -> Iterator[None]:
        """Let go of one object a step: to free ten thousand takes a while."""
        self._indexes, self._all = {}, ()
        for names in self._objects.values():
            while names:
                names.popitem()
                yield


def differences(
    before: Store[T], after: Mapping[Key, T], *, initial: bool
) -> Iterator[Change[T] | None]:
    """What leads from the one to the other: deletions first, then adds and updates in order.

    An object of the same uid and resourceVersion as before is no change: then None, as a moment to
    pause at.
    """
    for old in before.list():
        new = after.get(old.metadata.key)
        gone = new is None or new.metadata.uid != old.metadata.uid
        yield Change(old, None, relisted=True) if gone else None
    for key, new in after.items():
        known = before.get(*key)
        if known is None or known.metadata.uid != new.metadata.uid:
            yield Change(None, new, initial=initial, relisted=True)
        elif known.metadata.resource_version != new.metadata.resource_version:
            yield Change(known, new, relisted=True)
        else:
            yield None


class Joined(Generic[T]):
    """Several stores, each of one namespace, read as one. Implements ``Lister``."""

    def __init__(self, stores: Mapping[str, Store[T]]) -> None:
        self._stores = stores

    @property
    def resource_version(self) -> str:
        """That of the store which is furthest behind: all of them have come so far."""
        versions = [store.resource_version for store in self._stores.values()]
        return min(versions, key=lambda each: int(each) if each.isdecimal() else -1)

    @property
    def has_synced(self) -> bool:
        """All have."""
        return all(store.has_synced for store in self._stores.values())

    def get(self, namespace: str, name: str) -> T | None:
        """See ``Lister.get``."""
        store = self._stores.get(namespace)
        return store.get(namespace, name) if store is not None else None

    def list(self, namespace: str | None = None, *, selector: str = "") -> tuple[T, ...]:
        """See ``Lister.list``."""
        listed = (s.list(namespace, selector=selector) for s in self._stores.values())
        return tuple(chain.from_iterable(listed))

    def by_index(self, index: str, value: str) -> tuple[T, ...]:
        """See ``Lister.by_index``."""
        return tuple(chain.from_iterable(s.by_index(index, value) for s in self._stores.values()))
