"""First write is POST, later ones apply, and none when the object is what we want. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kaito.api.meta import Owned
from kaito.reconcilers.actions import Action, Apply, Create
from kaito.reconcilers.ownership import contains


def write(
    desired: Mapping[str, Any], live: Owned | None, owner_uid: str, *, exact: Sequence[str] = ()
) -> tuple[Action, ...]:
    """The action, if any, that makes ``live`` hold every leaf of ``desired`` (rule G13).

    Create never changes what is there; Apply names uid and version: it revives nothing.
    ``exact``: path of a map in which a key of someone else changes the meaning of ours.
    """
    if live is None:
        return (Create(desired, owner_uid),)
    is_same = contains(live.body, _content(desired)) and (
        not exact or _at(live.body, exact) == _at(desired, exact)
    )
    if live.metadata.is_deleting or is_same:
        return ()
    return (Apply(desired, live.metadata.uid, live.metadata.resource_version),)


def _content(desired: Mapping[str, Any]) -> dict[str, Any]:
    """Without what items of a list do not carry: it is the same for all of a kind."""
    return {key: value for key, value in desired.items() if key not in ("apiVersion", "kind")}


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) or {}
    return value
