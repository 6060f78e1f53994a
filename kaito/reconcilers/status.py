"""Conditions old and new to the full list that is written. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from kaito.api.conditions import Condition
from kaito.api.meta import ConditionView


def merge(
    previous: Sequence[ConditionView],
    current: Sequence[Condition],
    *,
    generation: int,
    now: str,
    drops: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The full list, sorted by type, as ``metav1.Condition`` objects.

    Types that this pass did not speak of stay as they are, foreign ones too (facts A10);
    ``lastTransitionTime`` moves only when the status value does (A11). ``now`` is RFC 3339.
    """
    merged = {c.type: _as_found(c) for c in previous if c.type not in drops}
    for condition in current:
        old = merged.get(condition.type)
        kept = old is not None and old["status"] == condition.status
        merged[condition.type] = {
            "type": str(condition.type),
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message[:32768],
            "observedGeneration": generation,
            "lastTransitionTime": old["lastTransitionTime"] if old is not None and kept else now,
        }
    return [merged[type_] for type_ in sorted(merged)]


def same(previous: Sequence[ConditionView], merged: Sequence[dict[str, Any]]) -> bool:
    """Would writing ``merged`` change nothing?"""
    return [_as_found(c) for c in previous] == list(merged)


def _as_found(condition: ConditionView) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": condition.last_transition_time,
    }
    if condition.observed_generation:
        found["observedGeneration"] = condition.observed_generation
    return found
