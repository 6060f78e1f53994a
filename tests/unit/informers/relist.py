"""What a store makes of a complete list, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from kaito.api.meta import ApiObject, Key
from kaito.informers.handlers import Change
from kaito.informers.store import Store, differences

T = TypeVar("T", bound=ApiObject)


def relist(store: Store[T], objects: Mapping[Key, T], version: str) -> list[Change[T]]:
    """Swap the list in; the changes it made."""
    aside = store.successor()
    for obj in objects.values():
        aside.apply(obj)
    store.swap(aside, version)
    return [each for each in differences(aside, objects, initial=False) if each is not None]
