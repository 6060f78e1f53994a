"""What a reconcile tells the queue when it did not raise."""

from __future__ import annotations

from dataclasses import dataclass

from kaito.errors import KaitoError


@dataclass(frozen=True, slots=True)
class Result:
    """``requeue_after``: seconds until the next look if no event comes; None waits for one.

    The queue keeps the earliest wish only, and an event consumes it: return it on every run.
    ``failure``: counts as if it had been raised, but the wish survives it (rule G15).
    ``requeue``: look again after the key's next backoff, which grows as if it had failed; a
    ``requeue_after`` or ``failure`` beside it decides instead.
    ``priority``: of the run asked for here; None keeps this run's.
    """

    requeue_after: float | None = None
    failure: KaitoError | None = None
    requeue: bool = False
    priority: int | None = None
