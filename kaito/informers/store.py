"""The cache of one kind: a single writer (the watcher), any number of readers.

Writes are plain functions that return the changes they made; telling handlers is the informer's
business. Readers get tuples, so nothing handed out changes later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Generic, TypeVar

from kaito.api.meta import ApiObject, Key
from kaito.informers.handlers import Change

T = TypeVar("T", bound=ApiObject)

IndexFunction = Callable[[T], Iterable[str]]


def is_at_least(have: str, want: str) -> bool:
    """``have`` is ``want`` or later. Numbers within one resource; anything else only if equal."""
    if have.isdecimal() and want.isdecimal():
        return int(have) >= int(want)
    return have == want


class _Index(Generic[T]):
    """Objects by the values of a function; uids inside a value, so a name's reuse cannot mix up."""

    def __init__(self, values: IndexFunction[T], on_error: Callable[[Exception], None]) -> None:
        self.function = values
        self._on_error = on_error
        self._values: dict[str, dict[str, T]] = {}

    def find(self, value: str) -> tuple[T, ...]:
        found = self._values.get(value)
        return tuple(found.values()) if found else ()

    def move(self, old: T | None, new: T | None) -> None:
        before = self._of(old, blame=False) if old is not None else ()
        after = self._of(new, blame=True) if new is not None else ()
        uid = new.metadata.uid if new is not None else ""
        if old is not None and (before != after or old.metadata.uid != uid):
            for value in before:
                bucket = self._values.get(value)
                if bucket is not None and bucket.pop(old.metadata.uid, None) and not bucket:
                    del self._values[value]
        if new is not None:
            for value in after:
                bucket = self._values.get(value)
                if bucket is None:
                    bucket = self._values[value] = {}
                bucket[uid] = new

    def _of(self, obj: T, *, blame: bool) -> tuple[str, ...]:
        try:
            return tuple(self.function(obj))
        except Exception as err:  # noqa: BLE001  someone else's function: its object stays readable
            if blame:
                self._on_error(err)
            return ()


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

    def list(self, namespace: str | None = None) -> tuple[T, ...]:
        """All objects, or those of one namespace. All: the same tuple until something changes."""
        if namespace is not None:
            return tuple(self._objects.get(namespace, {}).values())
        if self._all is None:
            self._all = tuple(self._each())
        return self._all

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
        self._indexes[name] = self._new_index(name, function, self._each())

    def apply(self, obj: T) -> tuple[Change[T], ...]:
        """Store an added or modified object. Another uid under its key: a delete and an add."""
        meta = obj.metadata
        names = self._objects.get(meta.namespace)
        if names is None:
            names = self._objects[meta.namespace] = {}
        old = names.get(meta.name)
        names[meta.name] = obj
        self._file(old, obj)
        if old is not None and old.metadata.uid != meta.uid:
            return (Change(old, None), Change(None, obj))
        return (Change(old, obj),)

    def remove(self, key: Key, last: T | None = None) -> tuple[Change[T], ...]:
        """Drop what is under the key; the change shows ``last``, its final state, if known."""
        namespace, name = key
        names = self._objects.get(namespace, {})
        old = names.pop(name, None)
        if old is None:
            return ()
        if not names:
            del self._objects[namespace]
        self._file(old, None)
        return (Change(last if last is not None else old, None),)

    def advance(self, resource_version: str) -> None:
        """Note how far the watch has come. Never back: a late duplicate moves nothing."""
        if resource_version and not is_at_least(self.resource_version, resource_version):
            self.resource_version = resource_version

    def replace(self, objects: Mapping[Key, T], resource_version: str) -> tuple[Change[T], ...]:
        """Swap everything in one step for a complete list.

        Deletions come first, then adds and updates in the list's order; an object with the same uid
        and resourceVersion as before is no change.
        """
        before = {obj.metadata.key: obj for obj in self._each()}
        self._objects = {}
        for (namespace, name), obj in objects.items():
            self._objects.setdefault(namespace, {})[name] = obj
        self.resource_version = resource_version
        self._all = None
        self._indexes = {
            name: self._new_index(name, index.function, objects.values())
            for name, index in self._indexes.items()
        }
        changes: list[Change[T]] = []
        for key, old in before.items():
            new = objects.get(key)
            if new is None or new.metadata.uid != old.metadata.uid:
                changes.append(Change(old, None, relisted=True))
        for key, new in objects.items():
            known = before.get(key)
            if known is None or known.metadata.uid != new.metadata.uid:
                changes.append(Change(None, new, relisted=True))
            elif known.metadata.resource_version != new.metadata.resource_version:
                changes.append(Change(known, new, relisted=True))
        return tuple(changes)

    def _each(self) -> Iterator[T]:
        return chain.from_iterable(names.values() for names in self._objects.values())

    def _file(self, old: T | None, new: T | None) -> None:
        self._all = None
        for index in self._indexes.values():
            index.move(old, new)

    def _new_index(
        self, name: str, function: IndexFunction[T], objects: Iterable[T] = ()
    ) -> _Index[T]:
        index = _Index(function, lambda err: self._on_index_error(name, err))
        for obj in objects:
            index.move(None, obj)
        return index
