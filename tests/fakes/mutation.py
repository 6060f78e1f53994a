"""Finds who writes to what a cache handed out: caches are shared, and copy nothing (facts S2).

A picture of each object is taken when a store takes it, and compared when the test has ended: by
the fixtures of ``tests/component/conftest.py`` and ``tests/unit/reconcilers/conftest.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel

from kaito.informers.handlers import Change
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.resources import Kind

T = TypeVar("T")

ABSENT = "<absent>"


class MutationDetector:
    """Pictures of objects by identity. What a store has let go is compared then, once."""

    def __init__(self) -> None:
        self._noted: dict[int, tuple[str, Any, Any]] = {}
        self._found: list[str] = []

    def note(self, kind: object, obj: T) -> T:
        """A store took this object. Returns it."""
        self._noted.setdefault(id(obj), (str(kind), obj, picture(obj)))
        return obj

    def follow(self, informer: Informer[Any]) -> None:
        """Note what this informer's store takes from now on, and what it holds already."""

        def hear(change: Change[Any]) -> None:
            if change.old is not None:
                self._compare(id(change.old))
            if change.new is not None:
                self.note(informer.kind, change.new)

        informer.add_handler(hear)

    def check(self) -> None:
        """Raises AssertionError: kind, key and path of the first difference of each object."""
        for identity in tuple(self._noted):
            self._compare(identity)
        assert not self._found, "written to, though a cache holds it:\n" + "\n".join(self._found)

    def _compare(self, identity: int) -> None:
        kind, obj, before = self._noted.pop(identity, ("", None, None))
        if obj is None:
            return
        for path, old, new in differences(before, picture(obj)):
            key = "/".join(filter(None, obj.metadata.key))
            self._found.append(f"{kind} {key}: {path} was {old!r}, is {new!r}")
            break


class WatchedInformerSet(InformerSet):
    """An ``InformerSet`` whose every store is followed by the running test's detector."""

    def informer(self, kind: Kind[Any], **options: Any) -> Informer[Any]:
        known = set(map(id, self))
        made = super().informer(kind, **options)
        if id(made) not in known:
            current().follow(made)
        return made


_running = MutationDetector()


def current() -> MutationDetector:
    """The running test's detector. For stand-ins of stores; fixtures start and check it."""
    return _running


def watched_for_mutations() -> Iterator[MutationDetector]:
    """Body of a fixture: a fresh detector, checked when the test has ended."""
    global _running  # noqa: PLW0603 - a process runs one test at a time
    _running = MutationDetector()
    yield _running
    _running.check()


def picture(value: Any) -> Any:
    """Nothing but new dicts, lists and leaves."""
    match value:
        case msgspec.Struct():
            return {name: picture(getattr(value, name)) for name in value.__struct_fields__}
        case BaseModel():
            return {name: picture(getattr(value, name)) for name in type(value).model_fields}
        case Mapping():
            return {key: picture(item) for key, item in value.items()}
        case list() | tuple():
            return [picture(item) for item in value]
        case set() | frozenset():
            return sorted(value)
        case _:
            return value


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, old and new value of each leaf that differs, in order."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            where = f"{path}.{key}" if path else str(key)
            yield from differences(before.get(key, ABSENT), after.get(key, ABSENT), where)
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            pair = [side[index] if index < len(side) else ABSENT for side in (before, after)]
            yield from differences(*pair, f"{path}[{index}]")
    elif before != after or type(before) is not type(after):
        yield path, before, after
