"""A watcher that is stopped, wherever it is; one that breaks from inside; its share of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kaito.errors import Forbidden, InvalidRequest, KindNotServed, TransportError
from kaito.informers.course import State
from tests.fakes.clock import settle
from tests.unit.informers.fake import Feed, Page, added, bookmark, failure, modified, raw
from tests.unit.informers.scene import Scene, Sink

MARKED = bookmark(5, marker=True)
LIFE_TURNS = 150


class SlowSink(Sink):
    """Takes a few turns of the loop for a list, as one with handlers to tell does."""

    async def replace(self, objects, resource_version) -> None:
        await super().replace(objects, resource_version)
        for _ in range(3):
            await asyncio.sleep(0)


def eventful() -> Scene:
    """Every await of a watcher is met: connect, list, read, telling, all kinds of pauses."""
    scene = Scene(sink=SlowSink())
    scene.kube.turns = 2  # before each answer
    scene.kube.feeds += [
        TransportError("refused"),
        InvalidRequest("no stream", status=422),
        Feed(added("a", 6), bookmark(7)).fail(TransportError("cut")),
        Forbidden("not yet"),
        Feed(modified("a", 8), failure(410)),
        KindNotServed("gone"),
        Feed(),
    ]
    scene.kube.pages += [
        Page([raw("a", 1)], "5", "more"),
        Page([raw("b", 2)], "5"),
        Page([raw("a", 9), raw("b", 2)], "9"),
        TransportError("reset"),
        Page([], "10"),
    ]
    return scene


async def until_stopped(scene: Scene, turn: int) -> asyncio.Task[None]:
    """Live so many turns of the loop, pauses skipped, then be cancelled and get one turn more."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(scene.watcher.run())
        for _ in range(turn):
            await asyncio.sleep(0)
            if scene.watcher.state in (State.BACKING_OFF, State.NOT_SERVED):
                scene.clock.skip()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert task.cancelled(), f"goes on after turn {turn}, {scene.watcher.state}"
    return task


@pytest.mark.parametrize("turn", range(1, LIFE_TURNS))
async def test_a_stop_at_any_await_ends_it_at_once_and_nothing_comes_after(turn):
    """R35, P6: in whichever turn of an eventful life."""
    scene = eventful()
    await until_stopped(scene, turn)
    heard = list(scene.sink.seen)
    assert scene.watcher.state is State.STOPPED
    assert all(feed.is_closed for feed in scene.kube.opened)
    scene.kube.open.send(added("late", 99))
    await scene.clock.advance(700)
    assert scene.sink.seen == heard
    assert len(asyncio.all_tasks()) == 1


async def test_the_eventful_life_is_as_eventful_as_it_says():
    """R35: what the stops above are spread over."""
    scene = eventful()
    await until_stopped(scene, LIFE_TURNS)
    assert scene.kube.asked == [
        *("stream -", "stream -", "list 0", "next -", "watch 5", "watch 7", "watch 7"),
        *("list 8", "watch 9", "list 9", "list 9", "watch 10"),
    ]
    assert scene.sink.seen == ["list a b", "ADDED a 6", "MODIFIED a 8", "list a b", "list "]


@pytest.mark.parametrize("turn", range(1, LIFE_TURNS, 7))
async def test_a_stop_in_the_turn_in_which_an_answer_comes_is_not_swallowed(turn):
    """P6, P1: whatever is already done when the cancellation arrives."""
    scene = eventful()
    scene.kube.turns = 0
    await until_stopped(scene, turn)


@pytest.mark.parametrize("where", ["apply", "replace", "list_page", "watch", "read"])
async def test_a_watch_that_is_cancelled_from_inside_is_an_error(where):
    """P4: a TaskGroup would take it for a quiet end."""
    scene = broken(where, asyncio.CancelledError)
    with pytest.raises(
        RuntimeError, match=r"the watch of things\.ex\.io was cancelled from inside"
    ):
        await scene.watcher.run()
    assert scene.watcher.state is State.STOPPED


@pytest.mark.parametrize("where", ["apply", "replace", "list_page", "watch", "read"])
async def test_a_timeout_of_something_inside_is_not_taken_for_silence(where):
    """P7: only the idle limit of the watcher's own means a silent stream."""
    scene = broken(where, TimeoutError)
    with pytest.raises(TimeoutError):
        await scene.watcher.run()


def broken(where: str, error: type[BaseException]) -> Scene:
    """A watcher in which this place raises that."""

    def fail(*_args, **_options):
        raise error

    async def fail_later(*_args, **_options):
        raise error

    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, added("a", 6)))
    match where:
        case "apply":
            scene.sink.apply = fail  # type: ignore[method-assign]
        case "replace":
            scene.sink.replace = fail_later  # type: ignore[method-assign]
        case "list_page":
            scene.kube.feeds.appendleft(InvalidRequest("no stream", status=422))
            scene.kube.pages.append(error())
        case "watch":
            scene.kube.feeds.appendleft(error())
        case "read":
            scene.kube.feeds[0].fail(error())  # type: ignore[union-attr]
    return scene


async def longest_hold(scene: Scene, run: Callable[[], Awaitable[None]]) -> float:
    """Most that the clock moved from one turn of the loop to the next."""
    longest, last = 0.0, scene.clock.monotonic()
    is_over = False

    def turn() -> None:
        nonlocal longest, last
        now = scene.clock.monotonic()
        longest, last = max(longest, now - last), now
        if not is_over:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    await run()
    is_over = True
    return longest


@pytest.mark.parametrize("way", ["stream", "list", "watch"])
@pytest.mark.parametrize("cost", [0.0003, 0.0007, 0.001])
async def test_no_run_of_lines_or_items_holds_the_loop_for_five_milliseconds(way, cost):
    """R34: by the clock, which here moves with each decode."""
    scene = Scene(cost=cost)
    if way == "list":
        scene.kube.feeds.append(InvalidRequest("no stream", status=422))
        scene.kube.pages.append(Page([raw(f"t{n}", n + 1) for n in range(100)], "200"))
    else:
        lines = [added(f"t{n}", n + 1) for n in range(100)]
        at = 0 if way == "watch" else len(lines)
        scene.kube.feeds.append(Ready(*lines[:at], bookmark(200, marker=True), *lines[at:]))

    async def run() -> None:
        async with scene.running():
            await settle(300)

    assert 0.003 < await longest_hold(scene, run) <= 0.005
    assert len(scene.decoded) == 100


class Ready(Feed):
    """All lines are here already: reading one never gives the loop a turn."""

    async def __anext__(self) -> bytes:
        if self._queue.empty():
            return await asyncio.get_running_loop().create_future()
        item = self._queue.get_nowait()
        assert isinstance(item, bytes)
        return item


async def test_a_lone_event_costs_the_loop_no_extra_turn():
    """R34, P15: however long ago the last one came."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED))
    async with scene.running():
        await scene.clock.advance(50)
        scene.kube.open.send(added("a", 6), added("b", 7))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert scene.sink.seen == ["list ", "ADDED a 6", "ADDED b 7"]


async def test_lines_need_neither_tasks_nor_timers():
    """P15: their number stays that of the watch."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED))
    async with scene.running():
        tasks, timers = len(asyncio.all_tasks()), len(scene.clock._timers)
        scene.kube.open.send(*(added(f"t{n}", 6 + n) for n in range(1_000)))
        await settle(100)
        assert len(scene.sink.seen) == 1_001
        assert (len(asyncio.all_tasks()), len(scene.clock._timers)) == (tasks, timers)
