"""Q1 to Q17: the work queue."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.controller.backoff import ExponentialBackoff
from kaito.controller.workqueue import LOW_PRIORITY, QueueMetrics, Shutdown, WorkQueue
from tests.fakes.clock import FakeClock, settle

STOP = Shutdown.SHUTDOWN


@pytest.fixture
def queue(clock: FakeClock) -> WorkQueue[str]:
    return WorkQueue(clock=clock, limiter=ExponentialBackoff(clock=clock, jitter=0), strict=True)


async def take_all(queue: WorkQueue[str]) -> list[str]:
    taken = []
    while len(queue):
        key = await queue.get()
        assert isinstance(key, str)
        taken.append(key)
        queue.done(key)
    return taken


async def test_a_queued_key_is_not_queued_twice(queue: WorkQueue[str]) -> None:
    """Q1"""
    queue.add("a")
    queue.add("a")
    assert len(queue) == 1
    assert await take_all(queue) == ["a"]


async def test_adds_during_processing_are_served_once_after_done(queue: WorkQueue[str]) -> None:
    """Q1"""
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert await take_all(queue) == ["a"]


async def test_no_key_is_ever_in_two_hands(queue: WorkQueue[str]) -> None:
    """Q1: 50 producers x 50 adds, 10 consumers."""
    in_hand: set[str] = set()
    seen: set[str] = set()

    async def produce(n: int) -> None:
        for i in range(50):
            queue.add(f"k{(n * 7 + i) % 40}")
            await asyncio.sleep(0)

    async def consume() -> None:
        while (key := await queue.get()) is not STOP:
            assert key not in in_hand
            in_hand.add(key)
            seen.add(key)
            await asyncio.sleep(0)
            in_hand.remove(key)
            queue.done(key)

    async with asyncio.TaskGroup() as consumers:
        for _ in range(10):
            consumers.create_task(consume())
        async with asyncio.TaskGroup() as producers:
            for n in range(50):
                producers.create_task(produce(n))
        queue.shutdown(drain=True)
    assert len(seen) == 40


async def test_higher_priority_goes_first_and_equals_in_order(queue: WorkQueue[str]) -> None:
    """Q2"""
    queue.add("initial-1", LOW_PRIORITY)
    queue.add("initial-2", LOW_PRIORITY)
    queue.add("change-1")
    queue.add("change-2")
    queue.add("urgent", 5)
    assert await take_all(queue) == ["urgent", "change-1", "change-2", "initial-1", "initial-2"]


async def test_a_higher_priority_raises_to_the_end_of_its_level(queue: WorkQueue[str]) -> None:
    """Q3: a lower one changes nothing."""
    for key in ("a", "b", "c"):
        queue.add(key, LOW_PRIORITY)
    queue.add("x")
    queue.add("b")
    queue.add("x", LOW_PRIORITY)
    assert await take_all(queue) == ["x", "b", "a", "c"]


async def test_a_retry_keeps_the_priority_of_its_run(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q3"""
    queue.add("low", LOW_PRIORITY)
    await queue.get()
    queue.add_rate_limited("low")
    queue.done("low")
    await clock.advance(1)
    queue.add("normal")
    assert await take_all(queue) == ["normal", "low"]


async def test_a_delay_of_nothing_adds_now(queue: WorkQueue[str]) -> None:
    """Q4"""
    queue.add_after("a", 0)
    queue.add_after("b", -1)
    assert len(queue) == 2


@pytest.mark.parametrize("delays", [(5, 10), (10, 5), (5, 10, 5, 20)])
async def test_of_several_wishes_the_earliest_wins(
    queue: WorkQueue[str], clock: FakeClock, delays: tuple[float, ...]
) -> None:
    """Q4, Q5: shortening takes effect at once, lengthening not at all."""
    for delay in delays:
        queue.add_after("a", delay)
    await clock.advance(4.9)
    assert len(queue) == 0
    await clock.advance(0.2)
    assert await take_all(queue) == ["a"]
    await clock.advance(100)
    assert len(queue) == 0


async def test_an_immediate_add_consumes_the_waiting_one(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q4: and a later wish for a ready key is ignored."""
    queue.add_after("a", 5)
    queue.add("a")
    queue.add_after("a", 7)
    assert await take_all(queue) == ["a"]
    await clock.advance(100)
    assert len(queue) == 0


async def test_a_wish_made_while_in_process_waits_for_done(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q1, Q4"""
    queue.add("a")
    await queue.get()
    queue.add_after("a", 5)
    await clock.advance(10)
    assert len(queue) == 0
    queue.done("a")
    assert await take_all(queue) == ["a"]


async def test_waiting_keys_become_ready_in_due_order(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q5: whatever the order of adding; several due at once come in order of their times."""
    for key, delay in (("c", 3), ("a", 1), ("d", 4), ("b", 2)):
        queue.add_after(key, delay)
    clock._boot += 3.5  # time passes, no timer has run yet
    queue.add("now")
    assert await take_all(queue) == ["a", "b", "c", "now"]
    await clock.advance(1)
    assert await take_all(queue) == ["d"]


async def test_one_timer_serves_all_delays(queue: WorkQueue[str], clock: FakeClock) -> None:
    """Q6: 2,000 waiting keys, one live timer."""
    delays = list(range(1, 2001))
    random.Random(1).shuffle(delays)
    for delay in delays:
        queue.add_after(f"k{delay}", delay)
    assert sum(timer.callback is not None for _, _, timer in clock._timers) == 1


async def test_overtaken_wishes_do_not_pile_up(queue: WorkQueue[str]) -> None:
    """Q6, Q14: a heap entry that lost holds no key and goes in time."""
    for i in range(10_000):
        queue.add_after("a", 1_000_000 - i)
    assert len(queue._heap) < 200


async def test_with_keys_present_no_getter_sleeps(queue: WorkQueue[str]) -> None:
    """Q7, Q8: 10,000 random cancellations of getters lose neither wake-up nor key."""
    dice = random.Random(7)
    taken: list[str] = []

    async def getter() -> None:
        key = await queue.get()
        assert isinstance(key, str)
        taken.append(key)
        queue.done(key)

    async with asyncio.TaskGroup() as group:
        added = cancelled = 0
        while cancelled < 10_000:
            waiting = [group.create_task(getter()) for _ in range(3)]
            await asyncio.sleep(0)
            for _ in range(dice.randrange(3)):
                queue.add(f"k{added}")
                added += 1
            for task in waiting:
                if dice.random() < 0.7:
                    cancelled += task.cancel()
            await settle(2)
            for task in waiting:
                assert task.done() or not len(queue), "a getter sleeps beside a ready key"
                task.cancel()
            await settle(2)
        rest = await take_all(queue)
    assert sorted([*taken, *rest]) == sorted(f"k{i}" for i in range(added))


async def test_a_key_survives_a_timeout_in_the_turn_it_arrives(queue: WorkQueue[str]) -> None:
    """Q8"""

    async def get_in_time() -> object:
        try:
            async with asyncio.timeout(1000) as limit:
                limits.append(limit)
                return await queue.get()
        except TimeoutError:
            return "timed out"

    limits: list[asyncio.Timeout] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(get_in_time())
        await settle()
        limits[0].reschedule(0)  # fires in the next turn, before the getter wakes up
        queue.add("a")
    assert task.result() == "timed out"
    assert await take_all(queue) == ["a"]


async def test_stop_drops_keys_and_releases_all_getters(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q9, Q11: keys in process finish, later adds are ignored, no timer is left."""
    async with asyncio.TaskGroup() as group:
        getters = [group.create_task(queue.get()) for _ in range(3)]
        await settle()
        queue.add("held")
        await settle()
        queue.add_after("later", 5)
        queue.add("held")
        queue.shutdown()
        queue.shutdown()
    assert sorted(str(g.result()) for g in getters) == sorted(["held", str(STOP), str(STOP)])
    queue.add("new")
    queue.add_after("new", 1)
    queue.done("held")
    assert len(queue) == 0
    assert await queue.get() is STOP
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_drain_hands_out_what_is_queued_and_readded(queue: WorkQueue[str]) -> None:
    """Q10: delayed keys are dropped; the end comes when the last key in process is done."""
    queue.add("a")
    queue.add("b")
    queue.add_after("later", 1)
    assert await queue.get() == "a"
    queue.shutdown(drain=True)
    queue.add("a")  # in process: still counts
    queue.add("new")  # ignored
    assert await queue.get() == "b"
    queue.done("b")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(queue.get()) for _ in range(2)]
        await settle()
        assert not any(task.done() for task in waiting)
        queue.done("a")
        await settle()
        queue.done("a")
    assert [task.result() for task in waiting] == ["a", STOP]


async def test_a_plain_stop_aborts_a_drain(queue: WorkQueue[str]) -> None:
    """Q10"""
    queue.add("a")
    queue.add("b")
    await queue.get()
    queue.shutdown(drain=True)
    queue.shutdown()
    assert await queue.get() is STOP
    queue.shutdown(drain=True)
    queue.done("a")
    assert len(queue) == 0


async def test_rate_limited_adds_wait_longer_each_time(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q12: forget resets the count only."""
    queue.add_rate_limited("a")
    queue.add_rate_limited("a")
    assert queue._limiter.num_requeues("a") == 2
    queue.forget("a")
    assert queue._limiter.num_requeues("a") == 0
    await clock.advance(0.005)
    assert await take_all(queue) == ["a"]


async def test_done_of_a_key_not_in_process_is_told(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q13"""
    with pytest.raises(RuntimeError, match="not in process"):
        queue.done("a")
    with capture_logs() as logs:
        WorkQueue[str](clock=clock).done("a")
    assert logs[0]["log_level"] == "error"


async def test_nothing_of_a_key_remains(clock: FakeClock) -> None:
    """Q14"""

    class Name:
        pass

    queue: WorkQueue[Name] = WorkQueue(clock=clock, metrics=QueueMetrics("references"))
    key = Name()
    seen = weakref.ref(key)
    queue.add_rate_limited(key)
    queue.add(key)
    await queue.get()
    queue.add_after(key, 5)
    queue.add(key)
    queue.done(key)
    await queue.get()
    queue.park(key)
    queue.unpark(key)
    await queue.get()
    queue.count_failure(key)
    queue.done(key)
    queue.forget(key)
    del key
    gc.collect()
    assert seen() is None


async def test_a_parked_key_is_held_back_until_released(queue: WorkQueue[str]) -> None:
    """Q15: no worker holds it, further adds are one."""
    queue.add("a", LOW_PRIORITY)
    queue.add("b", LOW_PRIORITY)
    await queue.get()
    queue.add_after("a", 5)
    queue.park("a")
    queue.add("a")
    queue.add_after("a", 1)
    assert queue.processing == ()
    assert len(queue) == 1
    queue.unpark("a")
    queue.unpark("a")
    assert await take_all(queue) == ["a", "b"]  # with the priority it was added with meanwhile


async def test_a_parked_key_is_dropped_by_a_stop(queue: WorkQueue[str]) -> None:
    """Q9, Q15"""
    queue.add("a")
    await queue.get()
    queue.shutdown(drain=True)
    queue.park("a")
    queue.unpark("a")
    assert await queue.get() is STOP


def sample(metric: str, name: str, **labels: str) -> float:
    value = REGISTRY.get_sample_value(metric, {"name": name, "controller": name, **labels})
    assert value is not None
    return value


async def test_metrics_follow_a_key_through_the_queue(clock: FakeClock) -> None:
    """Q16: repeated adds count once, a waiting key when it is ready."""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueMetrics("q16"))
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
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueMetrics("held"))
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
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueMetrics("many"))
    for priority in range(1, 31):
        queue.add(f"k{priority}", priority)
    assert sample("workqueue_depth", "many", priority="24") == 1
    assert sample("workqueue_depth", "many", priority="exceeded_cardinality_limit") == 6


async def test_a_drain_leaves_no_timer_of_the_metrics(clock: FakeClock) -> None:
    """Q11"""
    queue: WorkQueue[str] = WorkQueue(clock=clock, metrics=QueueMetrics("drained"))
    queue.add("a")
    queue.shutdown(drain=True)
    key = await queue.get()
    assert key == "a"
    queue.done("a")
    assert all(timer.callback is None for _, _, timer in clock._timers)
