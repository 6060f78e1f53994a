"""Q1 to Q17: the work queue."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import pytest
from structlog.testing import capture_logs

from kaito.controller.backoff import ExponentialBackoff
from kaito.controller.workqueue import LOW_PRIORITY, Shutdown, WorkQueue
from kaito.metrics import QueueSeries
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


async def test_only_ready_keys_are_counted(queue: WorkQueue[str]) -> None:
    """Q2: not those in process, parked or waiting for their time."""
    for key in ("parked", "held", "ready"):
        queue.add(key)
    queue.add_after("waiting", 5)
    queue.park(str(await queue.get()))
    await queue.get()
    assert len(queue) == 1


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


async def test_a_key_in_process_or_waiting_is_raised_too(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q3: whichever of its adds was the urgent one."""
    queue.add("held")
    await queue.get()
    for priority in (LOW_PRIORITY, 5, 0):
        queue.add("held", priority)
    queue.add_after("later", 1, priority=3)
    queue.add_after("later", 9, priority=4)
    queue.add_after("sooner", 9, priority=2)
    queue.add_after("sooner", 1)
    await clock.advance(1)
    queue.add("plain", 1)
    queue.done("held")
    assert await take_all(queue) == ["held", "later", "sooner", "plain"]


@pytest.mark.parametrize(("said", "order"), [(None, ["normal", "low"]), (1, ["low", "normal"])])
async def test_a_retry_keeps_the_priority_of_its_run(
    queue: WorkQueue[str], clock: FakeClock, said: int | None, order: list[str]
) -> None:
    """Q3: unless the result says otherwise."""
    queue.add("low", LOW_PRIORITY)
    await queue.get()
    queue.add_rate_limited("low", said)
    queue.done("low")
    await clock.advance(1)
    queue.add("normal")
    assert await take_all(queue) == order


async def test_priorities_do_not_pile_up(queue: WorkQueue[str]) -> None:
    """Q2, Q14: results may set any number; a level goes when it is empty and passed by."""
    for priority in range(1000):
        queue.add(f"k{priority}", priority)
    assert (await take_all(queue))[0] == "k999"
    queue.add("a")
    await queue.get()
    assert len(queue._levels) == len(queue._order) <= 2


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
    await clock.advance(4.999)
    assert len(queue) == 0
    await clock.advance(0.001)
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


async def test_a_key_takes_its_place_at_its_time(queue: WorkQueue[str], clock: FakeClock) -> None:
    """Q5: among keys that were ready before and keys that came after."""
    queue.add_after("due", 2)
    queue.add_after("twin", 2)
    queue.add("before")
    await clock.advance(2)
    queue.add("after")
    assert await take_all(queue) == ["before", "due", "twin", "after"]


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
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("a")
    assert queue._overtaken == len(queue._heap), "a wish that only waits for done is in no heap"


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


async def test_each_of_ten_thousand_getters_gets_its_key(queue: WorkQueue[str]) -> None:
    """Q7: the first half is cancelled, the others are served in the order they came."""
    async with asyncio.TaskGroup() as group:
        getters = [group.create_task(queue.get()) for _ in range(10_000)]
        await settle()
        for getter in getters[:5000]:
            getter.cancel()
        for i in range(5000):
            queue.add(f"k{i}")
        await settle()
        assert not queue._getters
    assert [getter.result() for getter in getters[5000:]] == [f"k{i}" for i in range(5000)]


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


async def test_drain_knows_what_was_added_before_it(queue: WorkQueue[str]) -> None:
    """Q10, Q14: again and at once: handed out; again and later: dropped, and nothing remains."""
    for key in ("now", "later"):
        queue.add(key)
        await queue.get()
    queue.add_after("now", 0)
    queue.add_after("later", 5)
    queue.shutdown(drain=True)
    queue.done("now")
    queue.done("later")
    assert await take_all(queue) == ["now"]
    assert await queue.get() is STOP
    assert not queue._entries


@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("turns", range(12))
async def test_a_stop_at_any_moment_ends_all_workers(
    queue: WorkQueue[str], drain: bool, turns: int
) -> None:
    """Q10, Q11: none waits for ever, whatever was handed out, added or cancelled meanwhile."""

    async def work() -> None:
        while (key := await queue.get()) is not STOP:
            assert isinstance(key, str)
            await asyncio.sleep(0)
            queue.add(key)
            queue.add_after(key, 1)
            await asyncio.sleep(0)
            queue.done(key)
            if queue._stopped:
                queue.shutdown()  # what was added again would never end

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(4)]
        queue.add("a")
        queue.add("b")
        await settle(turns)
        workers[turns % 4].cancel()
        queue.shutdown(drain=drain)
        await settle(50)
        assert all(worker.done() for worker in workers)


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
    assert queue.num_requeues("a") == 2
    queue.forget("a")
    assert queue.num_requeues("a") == 0
    await clock.advance(0.005)
    assert await take_all(queue) == ["a"]


async def test_each_key_of_a_batch_has_a_delay_of_its_own(
    queue: WorkQueue[str], clock: FakeClock
) -> None:
    """Q12"""
    for _ in range(3):
        queue._limiter.when("often")
    for key in ("often", "first", "second"):
        queue.add_rate_limited(key)
    await clock.advance(0.005)
    assert await take_all(queue) == ["first", "second"]
    await clock.advance(0.035)
    assert await take_all(queue) == ["often"]


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

    queue: WorkQueue[Name] = WorkQueue(clock=clock, metrics=QueueSeries("references"))
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
    assert not queue._in_process
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
