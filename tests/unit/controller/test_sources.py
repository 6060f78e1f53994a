"""C2, C17, C18: where a controller's keys come from, and when it starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from kaito.api.meta import Key
from kaito.controller.controller import Controller, ticks
from kaito.controller.result import Result
from kaito.errors import SyncTimeout
from kaito.informers.handlers import Change
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeInformer, Thing
from tests.unit.controller.runs import Log, own_key, running


def make(log: Log, clock: FakeClock) -> Controller:
    return Controller("sources", log, clock=clock)


async def test_events_become_reconciles(clock: FakeClock) -> None:
    """C11, C17, C18: added, changed and deleted objects, None from a mapper, plain enqueue."""
    log, informer = Log(), FakeInformer()
    controller = make(log, clock)
    controller.watch(cast(Any, informer), own_key)
    controller.watch(cast(Any, informer), lambda _: None)
    controller.watch(cast(Any, informer), lambda _: [])
    async with running(controller):
        informer.tell(Change(None, Thing("a")))
        informer.tell(Change(Thing("b"), Thing("b", "2")))
        informer.tell(Change(Thing("c"), None))
        controller.enqueue(("", "d"))
        controller.enqueue(("", "e"), after=5)
        await settle()
        assert log.names == ["a", "b", "c", "d"]
        await clock.advance(5)
        assert log.names[-1] == "e"


async def test_a_source_added_after_start_runs_at_once(clock: FakeClock) -> None:
    """C18"""
    log, informer = Log(), FakeInformer()
    controller = make(log, clock)
    async with running(controller):
        controller.watch(cast(Any, informer), own_key)
        informer.tell(Change(None, Thing("late")))
        await settle()
        assert log.names == ["late"]


async def test_work_starts_only_when_every_source_synced(clock: FakeClock) -> None:
    """C2"""
    log, first, second = Log(), FakeInformer(), FakeInformer(synced=False)
    controller = make(log, clock)
    controller.watch(cast(Any, first), own_key)
    controller.watch(cast(Any, second), own_key)
    first.tell(Change(None, Thing("a"), initial=True))
    async with running(controller):
        assert log.names == []
        second.synced.set()
        await settle()
        assert log.names == ["a"]


async def test_first_handler_calls_are_made_before_work_starts(clock: FakeClock) -> None:
    """C2: the first run finds the keys of every source in the queue."""
    informers = [FakeInformer() for _ in range(3)]
    told: list[int] = []

    async def reconcile(_: Key) -> Result:
        told.append(sum(len(informer.handlers) for informer in informers))
        return Result()

    controller = Controller("sources", reconcile, clock=clock)
    for i, informer in enumerate(informers):
        informer.objects = {("default", f"o{i}"): Thing(f"o{i}")}
        controller.watch(cast(Any, informer), own_key)
    async with running(controller):
        assert told == [3, 3, 3]


async def test_a_source_that_never_syncs_is_named(clock: FakeClock) -> None:
    """C2: controller, kind and last reason, after 120 s; not a kind that may be missing."""
    synced, late = FakeInformer(), FakeInformer(synced=False)
    late.last_error = "403 list things"
    controller = make(Log(), clock)
    controller.watch(cast(Any, synced), own_key)
    controller.watch(cast(Any, late), own_key)
    missing = FakeInformer(synced=False)
    missing.optional, missing.is_served = True, False
    controller.watch(cast(Any, missing), own_key)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(fails(controller))
        await clock.advance(119)
        assert not run.done()
        await clock.advance(1)
    message = run.result()
    assert "controller sources" in message
    assert message.count("things:") == 1
    assert "403 list things" in message


async def fails(controller: Controller) -> str:
    with pytest.raises(SyncTimeout) as failure:
        await controller.run()
    return str(failure.value)


class Channel:
    """Keys that somebody sends. Ends with None."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Key | None] = asyncio.Queue()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[Key]:
        try:
            while (key := await self.sent.get()) is not None:
                yield key
        finally:
            self.is_closed = True


async def test_channels_and_timers_are_sources(clock: FakeClock) -> None:
    """C18: from the start on, or at once when they come later; one that ends does no harm."""
    log, channel, late = Log(), Channel(), Channel()
    controller = make(log, clock)
    controller.follow(channel)
    controller.follow(ticks(clock, 60, ("", "tick"), ("", "tock")))
    channel.sent.put_nowait(("", "early"))
    await settle()
    assert not channel.sent.empty()
    async with running(controller):
        assert log.names == ["early"]
        await clock.advance(120)
        assert log.names == ["early", "tick", "tock", "tick", "tock"]
        channel.sent.put_nowait(None)
        controller.follow(late)
        late.sent.put_nowait(("", "late"))
        await settle()
        assert log.names[-1] == "late"
        assert channel.is_closed


async def test_a_stop_ends_every_source(clock: FakeClock) -> None:
    """C18, Q11: no task and no timer is left, and what happens later reaches nobody."""
    log, informer, channel = Log(), FakeInformer(), Channel()
    controller = make(log, clock)
    controller.watch(cast(Any, informer), own_key)
    controller.follow(channel)
    controller.follow(ticks(clock, 60, ("", "tick")))
    async with running(controller):
        await settle()
    assert channel.is_closed
    assert informer.handlers == []
    assert all(timer.callback is None for _, _, timer in clock._timers)
    informer.tell(Change(None, Thing("late")))
    controller.enqueue(("", "late"))
    await settle()
    assert log.names == []


async def test_a_stream_that_fails_ends_the_controller(clock: FakeClock) -> None:
    """C18, P4: with its own error, not silently."""

    async def broken() -> AsyncIterator[Key]:
        yield ("", "a")
        raise LookupError("no such channel")

    log = Log()
    controller = make(log, clock)
    controller.follow(broken())
    with pytest.raises(LookupError, match="no such channel"):
        await controller.run()
    assert controller.running == ()
