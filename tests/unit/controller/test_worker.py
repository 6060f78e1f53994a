"""C3 to C9: what an outcome becomes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import cast

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.api.meta import Key
from kaito.controller.backoff import ExponentialBackoff
from kaito.controller.result import Result
from kaito.controller.worker import Outcome, Worker
from kaito.controller.workqueue import LOW_PRIORITY, WorkQueue
from kaito.errors import (
    After,
    Conflict,
    Forbidden,
    InvalidPreset,
    KaitoError,
    NotLeader,
    TooManyRequests,
)
from tests.fakes.clock import FakeClock, settle

KEY = ("default", "phi")


class Bench:
    """One key in process, and the queue it goes back to."""

    def __init__(self, clock: FakeClock, name: str = "bench") -> None:
        self.clock = clock
        self.name = name
        self.queue: WorkQueue[Key] = WorkQueue(
            clock=clock, limiter=ExponentialBackoff(clock=clock, jitter=0), strict=True
        )
        self.worker = Worker(name, returns(Result()), self.queue, clock, timeout=120)

    async def run(
        self, reconcile: Callable[[Key], Awaitable[Result]], priority: int = 0
    ) -> Outcome:
        self.worker.reconcile = reconcile
        self.queue.add(KEY, priority)
        await self.queue.get()
        try:
            return await self.worker.process(KEY)
        finally:
            self.queue.done(KEY)

    async def due_in(self) -> float | None:
        """Seconds until the key is ready again, None when nothing is waiting."""
        if len(self.queue):
            return 0.0
        entry = self.queue._entries.get(KEY)
        return (
            None if entry is None or entry.wish is None else entry.wish.due - self.clock.monotonic()
        )

    def count(self, metric: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(metric, {"controller": self.name, **labels}) or 0


@pytest.fixture
def bench(clock: FakeClock, request: pytest.FixtureRequest) -> Bench:
    return Bench(clock, request.node.name)


def returns(result: Result | None) -> Callable[[Key], Awaitable[Result]]:
    async def reconcile(_: Key) -> Result:
        return cast(Result, result)

    return reconcile


def raises(error: BaseException) -> Callable[[Key], Awaitable[Result]]:
    async def reconcile(_: Key) -> Result:
        raise error

    return reconcile


@pytest.mark.parametrize(
    ("reconcile", "outcome", "due", "requeues"),
    [
        pytest.param(returns(Result()), "success", None, 0, id="ok"),
        pytest.param(returns(Result(30)), "requeue_after", 30, 0, id="requeue_after"),
        pytest.param(returns(Result(0)), "requeue_after", 0, 0, id="requeue now"),
        pytest.param(returns(Result(requeue=True)), "requeue", 0.02, 3, id="requeue"),
        pytest.param(
            returns(Result(30, requeue=True)), "requeue_after", 30, 0, id="requeue_after goes first"
        ),
        pytest.param(
            returns(Result(failure=TooManyRequests("t", retry_after=7), requeue=True)),
            *("error", 7, 2),
            id="an error goes before a result",
        ),
        pytest.param(raises(Conflict("c")), "error", 0.02, 3, id="backoff"),
        pytest.param(raises(Forbidden("f")), "error", 1, 3, id="backoff, not at once"),
        pytest.param(raises(TooManyRequests("t", retry_after=7)), "error", 7, 2, id="after"),
        pytest.param(raises(InvalidPreset("i")), "error", None, 2, id="never"),
        pytest.param(raises(ValueError("v")), "error", 0.02, 3, id="panic"),
        pytest.param(returns(None), "error", 0.02, 3, id="no result"),
        pytest.param(raises(NotLeader("n")), "error", 0.02, 3, id="not leader"),
        pytest.param(raises(TimeoutError("t")), "error", 0.02, 3, id="own timeout error"),
        pytest.param(
            returns(Result(9, failure=InvalidPreset("i"))), "error", 9, 2, id="never, with a wish"
        ),
        pytest.param(
            returns(Result(9, failure=Conflict("c"))), "error", 0.02, 3, id="backoff, with a wish"
        ),
    ],
)
async def test_an_outcome_puts_the_key_where_it_belongs(
    bench: Bench,
    reconcile: Callable[[Key], Awaitable[Result]],
    outcome: Outcome,
    due: float | None,
    requeues: int,
) -> None:
    """C3, C4, C5, G15: after two failures before it; a wish survives a failure."""
    for _ in range(2):
        bench.queue._limiter.when(KEY)
    assert await bench.run(reconcile) == outcome
    assert await bench.due_in() == pytest.approx(due)
    assert bench.queue.num_requeues(KEY) == requeues


@pytest.mark.parametrize(
    "wish",
    [
        Result(1),
        Result(requeue=True),
        Result(failure=Conflict("c")),
        Result(failure=TooManyRequests("t", retry_after=1)),
        Result(1, failure=InvalidPreset("i")),
    ],
    ids=["requeue_after", "requeue", "backoff", "after", "never, with a wish"],
)
@pytest.mark.parametrize(("said", "kept"), [(None, LOW_PRIORITY), (7, 7), (0, 0)])
async def test_a_retry_keeps_its_priority_unless_the_result_says_otherwise(
    bench: Bench, clock: FakeClock, wish: Result, said: int | None, kept: int
) -> None:
    """Q2, Q3"""
    await bench.run(returns(replace(wish, priority=said)), LOW_PRIORITY)
    await clock.advance(1)
    for priority in (kept + 1, kept):
        bench.queue.add(("", str(priority)), priority)
    order = [await bench.queue.get() for _ in range(3)]
    assert order == [("", str(kept + 1)), KEY, ("", str(kept))]


async def test_a_requeue_keeps_the_count_and_is_no_failure(bench: Bench) -> None:
    """C3: each next look waits longer, until a run that asks for none."""
    waits = []
    for result in (Result(requeue=True), Result(requeue=True), Result(), Result(requeue=True)):
        await bench.run(returns(result))
        waits.append(await bench.due_in())
        bench.queue.add(KEY)
    assert waits == [pytest.approx(0.005), pytest.approx(0.01), None, pytest.approx(0.005)]
    assert bench.count("controller_runtime_reconcile_total", result="requeue") == 3
    assert bench.count("controller_runtime_reconcile_errors_total") == 0


async def test_backoff_grows_until_a_run_without_error(bench: Bench) -> None:
    """C5"""
    waits = []
    for _ in range(3):
        await bench.run(raises(Conflict("c")))
        waits.append(await bench.due_in())
    await bench.run(returns(Result()))
    await bench.run(raises(Conflict("c")))
    waits.append(await bench.due_in())
    assert waits == pytest.approx([0.005, 0.01, 0.02, 0.005])


async def test_a_missing_right_is_asked_for_ever_more_rarely(bench: Bench) -> None:
    """W9: from 1 s up."""
    waits = []
    for _ in range(10):
        await bench.run(raises(Forbidden("f")))
        waits.append(await bench.due_in())
    assert waits == pytest.approx([*[1] * 8, 1.28, 2.56])


async def test_attempts_count_on_whatever_the_errors_wait(bench: Bench) -> None:
    """Style 28, C5: and a long series of known waits makes no later one longer."""
    slow = raises(TooManyRequests("t", retry_after=7))
    with capture_logs() as logs:
        for reconcile in (slow, slow, raises(InvalidPreset("i")), raises(Conflict("c"))):
            await bench.run(reconcile)
        assert await bench.due_in() == pytest.approx(0.005)
        await bench.run(returns(Result()))
        await bench.run(slow)
    assert [entry["attempt"] for entry in logs] == [1, 2, 3, 4, 1]


async def test_failures_of_a_key_nobody_tries_are_forgotten(bench: Bench, clock: FakeClock) -> None:
    """L6: also those that no wait of the limiter was for."""
    with capture_logs() as logs:
        for _ in range(2):
            await bench.run(raises(InvalidPreset("i")))
        await clock.advance(2001)
        await bench.run(raises(InvalidPreset("i")))
    assert [entry["attempt"] for entry in logs] == [1, 2, 1]


async def test_outcomes_are_counted_from_zero(bench: Bench) -> None:
    """M12, C3, C4: all four results are there from the start; a panic is an error too."""
    total = "controller_runtime_reconcile_total"
    for result in ("success", "error", "requeue", "requeue_after"):
        assert REGISTRY.get_sample_value(total, {"controller": bench.name, "result": result}) == 0
    await bench.run(returns(Result()))
    await bench.run(raises(InvalidPreset("i")))
    with capture_logs() as logs:
        await bench.run(raises(ValueError("v")))
    assert bench.count(total, result="success") == 1
    assert bench.count("controller_runtime_reconcile_errors_total") == 2
    assert bench.count("controller_runtime_terminal_reconcile_errors_total") == 1
    assert bench.count("controller_runtime_reconcile_panics_total") == 1
    assert bench.count("controller_runtime_reconcile_time_seconds_count") == 3
    assert [entry["event"] for entry in logs] == ["reconcile crashed"]
    assert logs[0]["exc_info"]


async def test_a_run_over_the_limit_is_cancelled_and_counted(
    bench: Bench, clock: FakeClock
) -> None:
    """C7"""
    cancelled = False

    async def hang(_: Key) -> Result:
        nonlocal cancelled
        try:
            await clock.sleep(1000)
        except asyncio.CancelledError:
            cancelled = True
            raise
        return Result()

    async with asyncio.TaskGroup() as group:
        run = group.create_task(bench.run(hang))
        await clock.advance(119)
        assert not run.done()
        await clock.advance(1)
    assert run.result() == "error"
    assert cancelled
    assert bench.count("controller_runtime_reconcile_timeouts_total") == 1
    assert bench.count("controller_runtime_reconcile_panics_total") == 0


async def test_a_timeout_error_of_its_own_is_no_timeout(bench: Bench) -> None:
    """C7"""
    await bench.run(raises(TimeoutError("mine")))
    assert bench.count("controller_runtime_reconcile_timeouts_total") == 0
    assert bench.count("controller_runtime_reconcile_panics_total") == 0


async def test_cancellation_by_stop_passes_and_is_no_failure(bench: Bench) -> None:
    """C6, C7: done runs even then."""
    async with asyncio.TaskGroup() as group:
        run = group.create_task(bench.run(raises_nothing_for_ever))
        await settle()
        run.cancel()
    assert run.cancelled()
    assert not bench.queue._in_process
    assert bench.count("controller_runtime_reconcile_errors_total") == 0


async def raises_nothing_for_ever(_: Key) -> Result:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
async def test_what_ends_the_process_passes(bench: Bench, error: BaseException) -> None:
    """C6"""
    with pytest.raises(type(error)):
        await bench.run(raises(error))
    assert bench.count("controller_runtime_reconcile_panics_total") == 0


@pytest.mark.parametrize("error", [ValueError, Conflict])
@pytest.mark.parametrize("is_raised", [True, False])
async def test_nothing_of_a_failed_run_is_kept(
    bench: Bench, error: type[Exception], is_raised: bool
) -> None:
    """C9: whatever failed it, raised or returned, no traceback keeps its frames."""

    class Snapshot:
        pass

    kept: list[weakref.ref[Snapshot]] = []

    async def fail(_: Key) -> Result:
        snapshot = Snapshot()
        kept.append(weakref.ref(snapshot))
        if is_raised:
            raise error(f"about {snapshot}")
        try:
            raise Conflict(f"about {snapshot}")
        except KaitoError as err:
            failure = err
        return Result(failure=failure)

    gc.disable()
    try:
        await bench.run(fail)
        assert kept[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [Conflict, ValueError])
async def test_nothing_of_what_caused_a_failure_is_kept(
    bench: Bench, error: type[Exception]
) -> None:
    """C9: nor of the cause's cause, though its frames and the failure refer to each other."""

    class Snapshot:
        pass

    kept: list[weakref.ref[Snapshot]] = []

    def dig(depth: int) -> None:
        snapshot = Snapshot()
        kept.append(weakref.ref(snapshot))
        try:
            if depth == 0:
                raise OSError(f"about {snapshot}")
            dig(depth - 1)
        except Exception as err:
            failure = error(f"about {snapshot}")
            raise failure from err

    async def fail(_: Key) -> Result:
        dig(2)
        return Result()

    gc.disable()
    try:
        await bench.run(fail)
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()


async def test_not_leader_is_not_shouted_about(bench: Bench) -> None:
    """E16"""
    with capture_logs() as logs:
        await bench.run(raises(NotLeader("n")))
    assert [entry["log_level"] for entry in logs] == ["debug"]


@pytest.mark.parametrize(
    ("error", "level"),
    [(Conflict("c"), "info"), (Forbidden("f"), "warning"), (InvalidPreset("i"), "error")],
)
async def test_a_failure_is_logged_with_its_reason(
    bench: Bench, error: KaitoError, level: str
) -> None:
    """Style 29: warning when it is retried, error when a person should look, neither for a 409."""
    with capture_logs() as logs:
        await bench.run(raises(error))
    assert (logs[0]["log_level"], logs[0]["reason"]) == (level, error.reason)


async def test_the_wait_comes_from_the_error(bench: Bench) -> None:
    """C3: After(seconds) of any error of the tree."""

    class Cooling(KaitoError):
        retry = After(42.0)

    await bench.run(raises(Cooling("later")))
    assert await bench.due_in() == 42
