"""One key through one reconcile. The only place that turns an error into a retry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, get_args

import structlog

from kaito import errors, metrics
from kaito.api.meta import Key
from kaito.clock import Clock, time_limit
from kaito.controller.backoff import Tries
from kaito.controller.result import Result
from kaito.controller.workqueue import WorkQueue

log = structlog.get_logger()

Outcome = Literal["success", "error", "requeue", "requeue_after"]
Reconcile = Callable[[Key], Awaitable[Result]]


class _Panic(errors.KaitoError):
    """Stands for an exception nobody meant to raise, which was logged with its traceback."""

    reason = "Panic"


@dataclass(eq=False)
class Worker:
    """What all runs of one controller share. ``timeout``: seconds after which a run has failed."""

    name: str
    reconcile: Reconcile
    queue: WorkQueue[Key]
    clock: Clock
    timeout: float

    def __post_init__(self) -> None:
        self._failures: Tries[Key] = Tries(clock=self.clock)
        total = metrics.RECONCILE_TOTAL
        self._outcomes = {each: total.labels(self.name, each) for each in get_args(Outcome)}
        self._errors = metrics.RECONCILE_ERRORS.labels(self.name)
        self._terminal = metrics.RECONCILE_TERMINAL_ERRORS.labels(self.name)
        self._panics = metrics.RECONCILE_PANICS.labels(self.name)
        self._timeouts = metrics.RECONCILE_TIMEOUTS.labels(self.name)
        self._seconds = metrics.RECONCILE_SECONDS.labels(self.name)

    async def process(self, key: Key) -> Outcome:
        """Reconcile and put the key where its outcome belongs. Cancellation passes through.

        The exception ends here: its traceback, and what that holds of the run, is dropped.
        """
        started = self.clock.monotonic()
        try:
            outcome = self._requeue(key, await self._run(key))
        except errors.KaitoError as err:
            outcome = self._requeue(key, Result(failure=err))
        except Exception as err:
            log.exception("reconcile crashed", reason=_Panic.reason)
            self._panics.inc()
            _drop_frames(err)
            outcome = self._requeue(key, Result(failure=_Panic()))
        self._seconds.observe(self.clock.monotonic() - started)
        self._outcomes[outcome].inc()
        return outcome

    async def _run(self, key: Key) -> Result:
        """Run it within the limit. A TimeoutError, ours or its own, becomes an ordinary failure."""
        try:
            async with time_limit(self.clock, self.timeout) as limit:
                return await self.reconcile(key)
        except TimeoutError as err:
            cause = f"timed out inside: {err}"
            if limit.expired():
                self._timeouts.inc()
                cause = f"not done after {self.timeout:g} s and cancelled"
            return Result(failure=errors.KaitoError(cause))

    def _requeue(self, key: Key, result: Result) -> Outcome:
        """The one table of outcomes: errors before results (facts C3)."""
        queue, failure, priority = self.queue, result.failure, result.priority
        if failure is None:
            if result.requeue and result.requeue_after is None:
                queue.add_rate_limited(key, priority)
                return "requeue"
            queue.forget(key)
            self._failures.forget(key)
            if result.requeue_after is None:
                return "success"
            queue.add_after(key, result.requeue_after, priority)
            return "requeue_after"
        _drop_frames(failure)
        self._errors.inc()
        _log_failure(failure, self._failures.count(key) + 1)
        match failure.retry:
            case errors.Backoff(at_least):
                queue.add_rate_limited(key, priority, at_least=at_least)
            case errors.After(seconds):
                queue.add_after(key, seconds, priority)
            case errors.Never():
                self._terminal.inc()
        if result.requeue_after is not None:  # the queue keeps the earlier of the two
            queue.add_after(key, result.requeue_after, priority)
        return "error"


def _log_failure(failure: errors.KaitoError, attempt: int) -> None:
    match failure:
        case _Panic():
            return
        case errors.NotLeader():  # someone else does the work now: nothing to look at
            say = log.debug
        case errors.Conflict():  # someone was faster: the next look is the answer
            say = log.info
        case _:
            say = log.error if isinstance(failure.retry, errors.Never) else log.warning
    say("reconcile failed", reason=failure.reason, error=str(failure), attempt=attempt)


def _drop_frames(error: BaseException | None) -> None:
    """Of the whole chain: frames may refer to the failures, a cycle that only gc would free."""
    if error is not None and error.__traceback__ is not None:
        error.__traceback__ = None
        _drop_frames(error.__cause__)
        _drop_frames(error.__context__)
