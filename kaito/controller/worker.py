"""One key through one reconcile. The only place that turns an error into a retry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import structlog
from prometheus_client import Counter

from kaito import metrics
from kaito.api.meta import Key
from kaito.clock import Clock, time_limit
from kaito.controller.result import Result
from kaito.controller.workqueue import WorkQueue
from kaito.errors import After, Backoff, Conflict, KaitoError, Never, NotLeader, Retry

log = structlog.get_logger()

Outcome = Literal["success", "error", "requeue", "requeue_after"]
Reconcile = Callable[[Key], Awaitable[Result]]


class _Panic(KaitoError):
    """Stands for an exception nobody meant to raise, which was logged with its traceback."""

    reason = "Panic"


class WorkerMetrics:
    """The reconcile series of one controller, all at 0 from the start."""

    def __init__(self, controller: str) -> None:
        self.outcomes: dict[Outcome, Counter] = {
            "success": metrics.RECONCILE_TOTAL.labels(controller, "success"),
            "error": metrics.RECONCILE_TOTAL.labels(controller, "error"),
            "requeue": metrics.RECONCILE_TOTAL.labels(controller, "requeue"),
            "requeue_after": metrics.RECONCILE_TOTAL.labels(controller, "requeue_after"),
        }
        self.errors = metrics.RECONCILE_ERRORS.labels(controller)
        self.terminal = metrics.RECONCILE_TERMINAL_ERRORS.labels(controller)
        self.panics = metrics.RECONCILE_PANICS.labels(controller)
        self.timeouts = metrics.RECONCILE_TIMEOUTS.labels(controller)
        self.seconds = metrics.RECONCILE_SECONDS.labels(controller)


async def process(
    key: Key,
    reconcile: Reconcile,
    queue: WorkQueue[Key],
    *,
    clock: Clock,
    timeout: float,
    metrics: WorkerMetrics,
) -> Outcome:
    """Reconcile and put the key where its outcome belongs. Cancellation passes through.

    ``timeout``: seconds after which the reconcile is cancelled and counts as failed.
    The exception ends here: its traceback, and what that holds of the run, is dropped.
    """
    started = clock.monotonic()
    try:
        result = await _run(key, reconcile, clock, timeout, metrics)
        outcome = _requeue(key, result, queue, metrics)
    except KaitoError as err:
        outcome = _requeue(key, Result(failure=err), queue, metrics)
    except Exception:
        log.exception("reconcile crashed", reason=_Panic.reason)
        metrics.panics.inc()
        outcome = _requeue(key, Result(failure=_Panic()), queue, metrics)
    metrics.seconds.observe(clock.monotonic() - started)
    metrics.outcomes[outcome].inc()
    return outcome


async def _run(
    key: Key, reconcile: Reconcile, clock: Clock, timeout: float, metrics: WorkerMetrics
) -> Result:
    """Run it within the limit. A TimeoutError, ours or its own, becomes an ordinary failure."""
    try:
        async with time_limit(clock, timeout) as limit:
            return await reconcile(key)
    except TimeoutError as err:
        if not limit.expired():
            return Result(failure=KaitoError(f"timed out inside: {err}"))
        metrics.timeouts.inc()
        return Result(failure=KaitoError(f"not done after {timeout:g} s and cancelled"))


def _requeue(key: Key, result: Result, queue: WorkQueue[Key], metrics: WorkerMetrics) -> Outcome:
    failure = result.failure
    if failure is None:
        queue.forget(key)
        if result.requeue_after is None:
            return "success"
        queue.add_after(key, result.requeue_after)
        return "requeue_after"
    failure.__traceback__ = None  # its frames refer to the failure: a cycle only gc would free
    metrics.errors.inc()
    _log_failure(failure, queue.count_failure(key))
    retry: Retry = failure.retry
    match retry:
        case Backoff(at_least):
            queue.add_rate_limited(key, at_least=at_least)
        case After(seconds):
            queue.add_after(key, seconds)
        case Never():
            metrics.terminal.inc()
    if result.requeue_after is not None:
        queue.add_after(key, result.requeue_after)  # the queue keeps the earlier of the two
    return "error"


def _log_failure(failure: KaitoError, attempt: int) -> None:
    match failure:
        case _Panic():
            return
        case NotLeader():  # someone else does the work now: nothing to look at
            say = log.debug
        case Conflict():  # someone was faster: the next look is the answer
            say = log.info
        case _:
            say = log.error if isinstance(failure.retry, Never) else log.warning
    say("reconcile failed", reason=failure.reason, error=str(failure), attempt=attempt)
