"""C1, C4, C6, C8 to C11, C13, C20, Q15: from events to reconciles."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any, cast

import pytest
import structlog
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.api.meta import Key
from kaito.controller.backoff import FastSlow
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.errors import Conflict
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeInformer, Thing
from tests.unit.controller.runs import Log, own_key, running


class FakeFreshness:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.waiting: dict[tuple[str, Key], list[Callable[[], None]]] = {}
        self.echoes: set[tuple[str, str]] = set()

    def track(self, informer: Any) -> None:
        self.tracked = informer

    def is_echo(self, owner: tuple[str, Key], kind: Any, change: Change[Thing]) -> bool:
        new = change.new
        return new is not None and (owner[1][1], new.metadata.resource_version) in self.echoes

    def pending(self, owner: tuple[str, Key]) -> bool:
        return owner in self.waiting

    def on_fresh(self, owner: tuple[str, Key], callback: Callable[[], None]) -> None:
        self.waiting[owner].append(callback)

    def settle(self, owner: tuple[str, Key]) -> None:
        for callback in self.waiting.pop(owner):
            callback()


def make(
    reconcile: Callable[[Key], Awaitable[Result]],
    clock: FakeClock,
    freshness: FakeFreshness | None = None,
    workers: int = 8,
) -> Controller:
    return Controller(
        "things",
        reconcile,
        clock=clock,
        freshness=cast(Freshness | None, freshness),
        workers=workers,
    )


async def test_predicates_run_before_mapping(clock: FakeClock) -> None:
    """C13"""
    mapped: list[str] = []

    def mapper(change: Change[Any]) -> Iterable[Key]:
        mapped.append(change.obj.metadata.name)
        return own_key(change)

    log, informer = Log(), FakeInformer()
    controller = make(log, clock)
    controller.watch(cast(Any, informer), mapper, predicate=lambda c: c.obj.metadata.name != "dull")
    async with running(controller):
        informer.tell(Change(None, Thing("dull")))
        informer.tell(Change(None, Thing("bright")))
    assert log.names == mapped == ["bright"]


async def test_echoes_of_own_writes_do_not_enqueue(clock: FakeClock) -> None:
    """G16: but a deletion that shows our last version does, and so does what another key wrote."""
    log, informer, freshness = Log(), FakeInformer(), FakeFreshness()
    freshness.echoes = {("a", "7")}
    controller = make(log, clock, freshness)
    controller.watch(cast(Any, informer), own_key)
    assert freshness.tracked is informer
    async with running(controller):
        informer.tell(Change(Thing("a", "6"), Thing("a", "7")))
        informer.tell(Change(Thing("b", "6"), Thing("b", "7")))
        informer.tell(Change(Thing("c", "7"), None))
        informer.tell(Change(Thing("d", "7"), Thing("d", "8")))
    assert log.names == ["b", "c", "d"]


async def test_changes_overtake_the_first_list_and_resyncs(clock: FakeClock) -> None:
    """Q2"""
    log, informer = Log(), FakeInformer()
    controller = make(log, clock, workers=1)
    controller.watch(cast(Any, informer), own_key)
    log.gate.clear()
    async with running(controller):
        controller.enqueue(("", "first"))
        await settle()
        informer.tell(Change(None, Thing("listed"), initial=True))
        informer.tell(Change(Thing("resynced", "3"), Thing("resynced", "3")))
        informer.tell(Change(None, Thing("new")))
        log.gate.set()
        await settle(50)
    assert log.names == ["first", "new", "listed", "resynced"]


async def test_so_many_workers_and_never_one_key_twice(clock: FakeClock) -> None:
    """C1"""
    log = Log()
    controller = make(log, clock, workers=3)
    log.gate.clear()
    async with running(controller):
        for _ in range(3):
            for name in "abcde":
                controller.enqueue(("", name))
            await settle()
        assert len(controller.running) == log.most == 3
        assert gauge("controller_runtime_active_workers") == 3
        log.gate.set()
        await settle(50)
    assert log.most == 3
    assert gauge("controller_runtime_active_workers") == 0
    assert gauge("controller_runtime_max_concurrent_reconciles") == 3


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"controller": "things"})


async def test_a_standby_keeps_nothing_and_starts_from_what_is_there(clock: FakeClock) -> None:
    """M2: however many objects came and went meanwhile."""
    log, informer = Log(), FakeInformer()
    controller = make(log, clock)
    controller.watch(cast(Any, informer), own_key)
    for i in range(100):
        informer.tell(Change(None, Thing(f"gone-{i}")))
        informer.tell(Change(Thing(f"gone-{i}"), None))
    informer.tell(Change(None, Thing("here")))
    assert len(controller._queue) == len(controller._arrived) == 0
    async with running(controller):
        await settle()
        informer.tell(Change(Thing("here"), None))
        await settle()
    assert log.names == ["here", "here"]


async def test_what_was_asked_for_later_before_the_start_is_counted_from_it(
    clock: FakeClock,
) -> None:
    """C18: the earliest wish of a key wins."""
    log = Log()
    controller = Controller("early", log, clock=clock)
    controller.enqueue(("", "a"), after=9)
    controller.enqueue(("", "a"), after=5)
    async with running(controller):
        await clock.advance(4)
        assert log.names == []
        await clock.advance(1)
    assert log.names == ["a"]


async def test_time_as_a_standby_is_no_latency(clock: FakeClock) -> None:
    """C20, Q16: keys wait for a worker from the start on, not from before."""
    informer = FakeInformer()
    controller = Controller("standby", Log(), clock=clock)
    controller.watch(cast(Any, informer), own_key)
    informer.tell(Change(None, Thing("a")))
    controller.enqueue(("", "b"))
    await clock.advance(36_000)
    async with running(controller):
        await settle()
    labels = {"controller": "standby"}
    queued = {"name": "standby", **labels}
    assert REGISTRY.get_sample_value("event_to_reconcile_seconds_sum", labels) == 0
    assert REGISTRY.get_sample_value("event_to_reconcile_seconds_count", labels) == 2
    assert REGISTRY.get_sample_value("workqueue_queue_duration_seconds_sum", queued) == 0


def test_the_series_of_a_stale_cache_are_there_from_the_start(clock: FakeClock) -> None:
    """M12"""
    Controller("unseen", Log(), clock=clock)
    for what in ("waits", "timeouts"):
        name = f"controller_stale_cache_{what}_total"
        assert REGISTRY.get_sample_value(name, {"controller": "unseen"}) == 0


async def test_a_reconcile_that_returns_nothing_leaves_the_controller(clock: FakeClock) -> None:
    """C4"""
    tries: list[Key] = []

    async def reconcile(key: Key) -> Result:
        tries.append(key)
        return cast(Result, None)

    controller = make(reconcile, clock)
    with capture_logs():
        async with running(controller):
            controller.enqueue(("", "a"))
            await settle()
            await clock.advance(0.01)
    assert tries == [("", "a")] * 2


async def test_a_deleted_object_is_looked_for_and_its_absence_is_success(clock: FakeClock) -> None:
    """C11"""
    informer = FakeInformer()
    found: list[Any] = []

    async def reconcile(key: Key) -> Result:
        found.append(informer.objects.get(key))
        return Result()

    controller = Controller("deletions", reconcile, clock=clock)
    controller.watch(cast(Any, informer), own_key)
    async with running(controller):
        informer.tell(Change(Thing("a"), None))
    assert found == [None]
    success = {"controller": "deletions", "result": "success"}
    assert REGISTRY.get_sample_value("controller_runtime_reconcile_total", success) == 1


async def test_eight_keys_are_worked_on_unless_told_otherwise(clock: FakeClock) -> None:
    """C1"""
    log = Log()
    controller = Controller("default", log, clock=clock)
    log.gate.clear()
    async with running(controller):
        for i in range(9):
            controller.enqueue(("", str(i)))
        await settle()
        assert len(controller.running) == log.most == 8
        log.gate.set()


@pytest.mark.parametrize("end", [ValueError, Conflict, TimeoutError])
async def test_nothing_of_a_run_is_kept(clock: FakeClock, end: type[Exception]) -> None:
    """C9: neither traceback nor frame nor what the frame held, without help of the collector."""

    class Snapshot:
        pass

    kept: list[weakref.ref[Snapshot]] = []

    async def fail(_: Key) -> Result:
        snapshot = Snapshot()
        kept.append(weakref.ref(snapshot))
        raise end(f"about {snapshot}")

    controller = make(fail, clock)
    gc.disable()
    try:
        with capture_logs() as logs:
            async with running(controller):
                controller.enqueue(("", "a"))
                await settle()
                logs.clear()
                assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes_and_the_key_is_done(end: type[BaseException]) -> None:
    """C6, P14: through the controller; nothing of it is left in process."""
    controllers: list[Controller] = []

    async def reconcile(_: Key) -> Result:
        raise end

    async def main() -> None:
        controllers.append(make(reconcile, FakeClock()))
        async with running(controllers[0]):
            controllers[0].enqueue(("", "a"))
            await settle()

    with capture_logs() as logs, pytest.raises(end):
        asyncio.run(main())
    assert controllers[0].running == ()
    assert not controllers[0]._queue._in_process
    assert "reconcile crashed" not in [entry["event"] for entry in logs]


async def test_each_run_has_a_context_of_its_own(clock: FakeClock) -> None:
    """C8: bound with who is reconciled; nothing leaks into the next key."""
    leak: ContextVar[str] = ContextVar("leak", default="")
    seen: list[tuple[dict[str, Any], Any, str]] = []

    async def reconcile(key: Key) -> Result:
        seen.append((structlog.contextvars.get_contextvars(), CURRENT.get(), leak.get()))
        leak.set(key[1])
        structlog.contextvars.bind_contextvars(workspace=key[1])
        return Result()

    controller = make(reconcile, clock, workers=1)
    async with running(controller):
        controller.enqueue(("ns", "a"))
        controller.enqueue(("ns", "b"))
    (first, _, _), (second, current, leaked) = seen
    assert first.pop("reconcile_id") != second.pop("reconcile_id")
    assert second == {"controller": "things", "namespace": "ns", "name": "b"}
    assert (current, leaked) == (("things", ("ns", "b")), "")
    assert structlog.contextvars.get_contextvars() == {}
    assert CURRENT.get() is None


async def test_stop_takes_no_new_key_and_waits_for_those_in_process(clock: FakeClock) -> None:
    """C10"""
    log = Log()
    controller = make(log, clock, workers=1)
    log.gate.clear()
    async with asyncio.TaskGroup() as group:
        run = group.create_task(controller.run())
        controller.enqueue(("", "a"))
        controller.enqueue(("", "b"))
        await settle()
        controller.stop()
        await settle()
        assert not run.done()
        assert controller.running == (("", "a"),)
        log.gate.set()
    assert log.names == ["a"]
    assert controller.running == ()


async def test_cancelling_the_controller_cancels_its_runs(clock: FakeClock) -> None:
    """C6, C10"""
    log = Log()
    controller = make(log, clock)
    log.gate.clear()
    async with asyncio.TaskGroup() as group:
        run = group.create_task(controller.run())
        controller.enqueue(("", "a"))
        await settle()
        run.cancel()
    assert log.running == set()
    assert controller.running == ()
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_a_crash_leaves_the_other_workers(clock: FakeClock) -> None:
    """C4, P5: and the key comes again."""
    tries: list[str] = []

    async def reconcile(key: Key) -> Result:
        tries.append(key[1])
        if tries.count("bad") == 1 and key[1] == "bad":
            raise ZeroDivisionError
        return Result()

    controller = make(reconcile, clock)
    with capture_logs():
        async with running(controller):
            controller.enqueue(("", "bad"))
            controller.enqueue(("", "good"))
            await settle()
            await clock.advance(1)
    assert sorted(tries) == ["bad", "bad", "good"]


async def test_a_run_that_cancels_itself_is_tried_again(clock: FakeClock) -> None:
    """P4, C6: nobody asked for it, so the key is still wanted."""
    tries = 0

    async def reconcile(_: Key) -> Result:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise asyncio.CancelledError
        return Result()

    controller = make(reconcile, clock)
    with capture_logs() as logs:
        async with running(controller):
            controller.enqueue(("", "a"))
            await settle()
            await clock.advance(1)
    assert tries == 2
    assert "reconcile cancelled itself" in [entry["event"] for entry in logs]


async def test_a_key_waits_parked_for_its_own_last_write(clock: FakeClock) -> None:
    """Q15, A2, A3, G17: it holds no worker, other keys go on, one run when the cache has it."""
    log, freshness = Log(), FakeFreshness()
    controller = make(log, clock, freshness, workers=1)
    freshness.waiting["things", ("", "a")] = []
    async with running(controller):
        controller.enqueue(("", "a"))
        await settle()
        controller.enqueue(("", "a"))
        controller.enqueue(("", "b"))
        await settle()
        assert log.names == ["b"]
        freshness.settle(("things", ("", "a")))
        await settle()
        assert log.names == ["b", "a"]
        await clock.advance(100)
    assert log.names == ["b", "a"]


async def test_the_waits_may_be_another_limiters(clock: FakeClock) -> None:
    """L5"""
    tries: list[float] = []

    async def reconcile(_: Key) -> Result:
        tries.append(clock.monotonic() - began)
        return Result(requeue=True)

    limiter: FastSlow[Key] = FastSlow(clock=clock, fast=1, slow=10, tries=2)
    controller = Controller("fast-slow", reconcile, clock=clock, limiter=limiter)
    began = clock.monotonic()
    async with running(controller):
        controller.enqueue(("", "a"))
        await clock.advance(25)
    assert tries == [0, 1, 2, 12, 22]


async def test_time_from_event_to_reconcile_is_observed(clock: FakeClock) -> None:
    """C20: the waiting of a held key counts."""
    log = Log()
    controller = make(log, clock, workers=1)
    name = "event_to_reconcile_seconds"
    before = gauge(f"{name}_sum") or 0
    log.gate.clear()
    async with running(controller):
        controller.enqueue(("", "a"))
        controller.enqueue(("", "b"))
        await clock.advance(3)
        log.gate.set()
    assert (gauge(f"{name}_sum") or 0) - before == 3
