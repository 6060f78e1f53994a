"""What a reconcile tells the queue when it did not raise."""

from __future__ import annotations

from dataclasses import dataclass

from kaito.errors import KaitoError


@dataclass(frozen=True, slots=True)
class Result:
    """``requeue_after``: seconds until the next look if no event comes; None waits for one.

    The queue keeps the earliest wish only, and an event consumes it: return it on every run.
    ``failure``: counts as if it had been raised, but the wish survives it (rule G15).
    """

    requeue_after: float | None = None
    failure: KaitoError | None = None
