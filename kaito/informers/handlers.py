"""What an event is to its readers, and how it becomes keys.

A handler is a plain function called in the watch's own turn: it maps and enqueues, nothing more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from kaito.api.meta import ApiObject, Key

T = TypeVar("T", bound=ApiObject)


# A msgspec struct where the house uses dataclasses: one is made per event, at a tenth of the cost.
class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One object before and after. ``old`` None: added; ``new`` None: deleted.

    ``old`` of a deletion is the object's last state as far as known; a deletion that only a relist
    showed looks the same (facts S5). ``initial``: an add of the first list, or replayed to a
    handler that came later; nothing else (S7). ``relisted``: a list showed it, initial or not, so
    several events may have become this one.
    """

    old: T | None
    new: T | None
    initial: bool = False
    relisted: bool = False

    @property
    def obj(self) -> T:
        """The newest state there is."""
        obj = self.new if self.new is not None else self.old
        assert obj is not None, "a change has at least one side"
        return obj


Handler = Callable[[Change[T]], None]
KeyMapper = Callable[[Change[T]], list[Key]]


def own_key(change: Change[T]) -> list[Key]:
    """The object is itself what is reconciled."""
    return [change.obj.metadata.key]


def owner_keys(api_group: str, kind: str) -> KeyMapper[ApiObject]:
    """Keys of the controlling owner, of the old state too: who lost a child must learn of it.

    ``api_group``: without the version, ``""`` for core; an owner's version may differ from ours.
    """

    def keys(change: Change[ApiObject]) -> list[Key]:
        found: dict[Key, None] = {}
        for obj in (change.old, change.new):
            if obj is None:
                continue
            for owner in obj.metadata.owner_references:
                group = owner.api_version.rpartition("/")[0]
                if owner.controller and owner.kind == kind and group == api_group:
                    found[(obj.metadata.namespace, owner.name)] = None
        return list(found)

    return keys


def label_keys(namespace_label: str, name_label: str) -> KeyMapper[ApiObject]:
    """The key that two labels spell out, of the old state too. For objects without an owner.

    An absent namespace label means a cluster-scoped key; an absent name label, none.
    """

    def keys(change: Change[ApiObject]) -> list[Key]:
        found: dict[Key, None] = {}
        for obj in (change.old, change.new):
            name = obj.metadata.labels.get(name_label) if obj is not None else None
            if obj is not None and name:
                found[(obj.metadata.labels.get(namespace_label, ""), name)] = None
        return list(found)

    return keys
