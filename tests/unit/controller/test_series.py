"""Q16, M12: what the queue's and the reconciles' series say, and what they are called."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.controller.workqueue import LOW_PRIORITY, WorkQueue
from kaito.metrics import QueueSeries
from tests.fakes.clock import FakeClock, settle

RB = (
    "0.005 0.01 0.025 0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.45 0.5 0.6 0.7 0.8 0.9 1.0 1.25 1.5 "
    "1.75 2.0 2.5 3.0 3.5 4.0 4.5 5.0 6.0 7.0 8.0 9.0 10.0 15.0 20.0 25.0 30.0 40.0 50.0 60.0 +Inf"
)
WB = "1e-08 1e-07 1e-06 1e-05 0.0001 0.001 0.01 0.1 1.0 10.0 100.0 1000.0 +Inf"
QUEUE = {"name", "controller"}
RUNS = {"controller"}


def sample(metric: str, name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(metric, {"name": name, "controller": name, **labels})
    assert value is not None
    return value


async def test_metrics_follow_a_key_through_the_queue(clock: FakeClock) -> None:
    """Q16: repeated adds count once, a waiting key when it is ready."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueSeries("q16"))
    queue.add_after("a", 10)
    assert sample("workqueue_retries_total", "q16") == 1
    assert sample("workqueue_adds_total", "q16") == 0
    await clock.advance(10)
    queue.add("a")
    queue.add("low", LOW_PRIORITY)
    assert sample("workqueue_adds_total", "q16") == 2
    assert sample("workqueue_depth", "q16", priority="0") == 1
    assert sample("workqueue_depth", "q16", priority="-100") == 1
    await clock.advance(2)
    assert await queue.get() == "a"
    assert sample("workqueue_depth", "q16", priority="0") == 0
    assert sample("workqueue_queue_duration_seconds_sum", "q16") == 2
    await clock.advance(3)
    assert sample("workqueue_unfinished_work_seconds", "q16") == 3
    assert sample("workqueue_longest_running_processor_seconds", "q16") == 3
    queue.add("a")
    queue.add("a")
    queue.done("a")
    assert sample("workqueue_work_duration_seconds_sum", "q16") == 3
    assert sample("workqueue_adds_total", "q16") == 3
    await clock.advance(1)
    assert sample("workqueue_unfinished_work_seconds", "q16") == 0
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_a_parked_key_is_counted_once(clock: FakeClock) -> None:
    """Q15, Q16: one add, one wait, one piece of work, however often it was held back."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueSeries("held"))
    queue.add("a")
    await clock.advance(1)
    await queue.get()
    queue.park("a")
    await clock.advance(5)
    assert sample("workqueue_unfinished_work_seconds", "held") == 0
    queue.unpark("a")
    await queue.get()
    await clock.advance(3)
    queue.done("a")
    assert sample("workqueue_adds_total", "held") == 1
    assert sample("workqueue_queue_duration_seconds_count", "held") == 1
    assert sample("workqueue_queue_duration_seconds_sum", "held") == 1
    assert sample("workqueue_work_duration_seconds_count", "held") == 1
    assert sample("workqueue_work_duration_seconds_sum", "held") == 3


async def test_beyond_25_priorities_depth_shares_one_series(clock: FakeClock) -> None:
    """Q16, M12: labels come from a closed set."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueSeries("many"))
    for priority in range(1, 31):
        queue.add(f"k{priority}", priority)
    assert sample("workqueue_depth", "many", priority="24") == 1
    assert sample("workqueue_depth", "many", priority="exceeded_cardinality_limit") == 6


async def test_ages_grow_while_the_loop_is_held(clock: FakeClock) -> None:
    """Q16: read at the scrape, so never older than half a second; no timer of its own."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueSeries("ages"))
    for key in ("a", "b"):
        queue.add(key)
        await queue.get()
        clock._boot += 2  # no timer runs, no turn of the loop passes
    assert sample("workqueue_unfinished_work_seconds", "ages") == 6
    assert sample("workqueue_longest_running_processor_seconds", "ages") == 4
    assert not clock._timers


@pytest.mark.parametrize(
    ("name", "kind", "labels", "buckets"),
    [
        ("controller_runtime_reconcile", "counter", {*RUNS, "result"}, ""),
        ("controller_runtime_reconcile_errors", "counter", RUNS, ""),
        ("controller_runtime_terminal_reconcile_errors", "counter", RUNS, ""),
        ("controller_runtime_reconcile_panics", "counter", RUNS, ""),
        ("controller_runtime_reconcile_timeouts", "counter", RUNS, ""),
        ("controller_runtime_reconcile_time_seconds", "histogram", RUNS, RB),
        ("controller_runtime_max_concurrent_reconciles", "gauge", RUNS, ""),
        ("controller_runtime_active_workers", "gauge", RUNS, ""),
        ("event_to_reconcile_seconds", "histogram", RUNS, RB),
        ("workqueue_depth", "gauge", {*QUEUE, "priority"}, ""),
        ("workqueue_adds", "counter", QUEUE, ""),
        ("workqueue_queue_duration_seconds", "histogram", QUEUE, WB),
        ("workqueue_work_duration_seconds", "histogram", QUEUE, WB),
        ("workqueue_unfinished_work_seconds", "gauge", QUEUE, ""),
        ("workqueue_longest_running_processor_seconds", "gauge", QUEUE, ""),
        ("workqueue_retries", "counter", QUEUE, ""),
    ],
)
async def test_series_are_called_as_dashboards_expect(
    clock: FakeClock, name: str, kind: str, labels: set[str], buckets: str
) -> None:
    """M12: names, types, labels and buckets of the page as it is served; all there at the start."""
    unseen = f"page of {name}"

    async def reconcile(_: tuple[str, str]) -> Result:
        return Result()

    controller = Controller(unseen, reconcile, clock=clock)
    page = {f.name: f for f in text_string_to_metric_families(generate_latest(REGISTRY).decode())}
    assert page[name].type == kind
    ours = [s for s in page[name].samples if s.labels["controller"] == unseen]
    assert ours
    assert all(s.labels.keys() - {"le"} == labels for s in ours)
    assert tuple(s.labels["le"] for s in ours if "le" in s.labels) == tuple(buckets.split())
    assert controller.running == ()


async def test_a_histogram_counts_what_it_was_shown(clock: FakeClock) -> None:
    """M12: cumulative buckets, bounds included; count and sum."""
    seconds = iter((0.005, 0.006, 100.0))

    async def reconcile(_: tuple[str, str]) -> Result:
        clock._boot += next(seconds)
        return Result()

    controller = Controller("histogram", reconcile, clock=clock, workers=1)
    async with asyncio.TaskGroup() as group:
        group.create_task(controller.run())
        await settle()
        for name in "abc":
            controller.enqueue(("", name))
        await settle()
        controller.stop()
    name, labels = "controller_runtime_reconcile_time_seconds", {"controller": "histogram"}
    counts = {
        bound: REGISTRY.get_sample_value(f"{name}_bucket", {**labels, "le": bound})
        for bound in RB.split()
    }
    assert (counts["0.005"], counts["0.01"], counts["60.0"], counts["+Inf"]) == (1, 2, 2, 3)
    assert REGISTRY.get_sample_value(f"{name}_count", labels) == 3
    assert REGISTRY.get_sample_value(f"{name}_sum", labels) == pytest.approx(100.011)
