"""Which changes are worth a reconcile. Composable, pure; each takes a ``Change``.

An added or deleted object always counts: predicates here only thin out updates. That an event is
the echo of our own write is another question (``Freshness.is_echo``).
"""

from __future__ import annotations

from collections.abc import Callable

from kaito.api.meta import ApiObject
from kaito.informers.handlers import Change

Predicate = Callable[[Change[ApiObject]], bool]


def generation_changed(change: Change[ApiObject]) -> bool:
    """The spec changed, or deletion began: status and label writes leave the generation alone.

    Another uid is another object, whose generation may be the same.
    """
    return _differ(change, "uid", "generation")


def deletion_started(change: Change[ApiObject]) -> bool:
    """The object was added in deletion, turned to it, is gone, or is another one (by uid)."""
    old, new = change.old, change.new
    if new is None or (old is not None and old.metadata.uid != new.metadata.uid):
        return True
    return new.metadata.is_deleting and not (old is not None and old.metadata.is_deleting)


def resource_version_changed(change: Change[ApiObject]) -> bool:
    """Anything changed at all; false for a resync and for an event delivered twice."""
    return _differ(change, "uid", "resource_version")


def any_of(*predicates: Predicate) -> Predicate:
    """True if one holds."""
    return lambda change: any(holds(change) for holds in predicates)


def all_of(*predicates: Predicate) -> Predicate:
    """True if every one holds."""
    return lambda change: all(holds(change) for holds in predicates)


def negate(predicate: Predicate) -> Predicate:
    """True if it does not hold."""
    return lambda change: not predicate(change)


def _differ(change: Change[ApiObject], *fields: str) -> bool:
    if change.old is None or change.new is None:
        return True
    old, new = change.old.metadata, change.new.metadata
    return any(getattr(old, name) != getattr(new, name) for name in fields)
