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
    """The spec changed, or deletion began: status and label writes leave the generation alone."""
    if change.old is None or change.new is None:
        return True
    return change.old.metadata.generation != change.new.metadata.generation


def deletion_started(change: Change[ApiObject]) -> bool:
    """The object was added in deletion, turned to it, or is gone."""
    if change.new is None:
        return True
    was_deleting = change.old is not None and change.old.metadata.is_deleting
    return change.new.metadata.is_deleting and not was_deleting


def resource_version_changed(change: Change[ApiObject]) -> bool:
    """Anything changed at all; false for a resync and for an event delivered twice."""
    if change.old is None or change.new is None:
        return True
    return change.old.metadata.resource_version != change.new.metadata.resource_version


def any_of(*predicates: Predicate) -> Predicate:
    """True if one holds."""
    return lambda change: any(holds(change) for holds in predicates)


def all_of(*predicates: Predicate) -> Predicate:
    """True if every one holds."""
    return lambda change: all(holds(change) for holds in predicates)


def negate(predicate: Predicate) -> Predicate:
    """True if it does not hold."""
    return lambda change: not predicate(change)
