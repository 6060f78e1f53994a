"""Fold small decisions over one frozen snapshot. Pure.

A step is a plain function from the snapshot to a ``Step``. Every step reports on every pass; a step
that is not done drops the *actions* of the later ones, never their conditions (rule G18).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from kaito.api.conditions import Condition
from kaito.reconcilers.actions import Action

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Step:
    """What one step saw and decided.

    ``requeue_after``: seconds until this step wants another look; None waits for an event.
    ``drops``: condition types this step no longer stands for (removed from the status).
    """

    done: bool
    actions: tuple[Action, ...] = ()
    conditions: tuple[Condition, ...] = ()
    requeue_after: float | None = None
    drops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps folded. ``held_at``: name of the first step that is not done, None when all are."""

    actions: tuple[Action, ...] = ()
    conditions: tuple[Condition, ...] = ()
    requeue_after: float | None = None
    held_at: str | None = None
    drops: tuple[str, ...] = ()


def decide(steps: Sequence[Callable[[S], Step]], state: S) -> Plan:
    """Every step reports; actions count up to and with the first step that is not done.

    A wait counts from any step: one that is held may still have a deadline to watch.
    """
    actions: list[Action] = []
    conditions: list[Condition] = []
    drops: list[str] = []
    waits: list[float] = []
    held_at: str | None = None
    for step in steps:
        out = step(state)
        conditions += out.conditions
        drops += out.drops
        if out.requeue_after is not None:
            waits.append(out.requeue_after)
        if held_at is not None:
            continue
        actions += out.actions
        if not out.done:
            held_at = step.__name__
    return Plan(tuple(actions), tuple(conditions), min(waits, default=None), held_at, tuple(drops))
