"""P1 to P7, P15: what asyncio does quietly, and that nothing here is caught by it."""

from __future__ import annotations

import ast
import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

import kaito
from kaito.api.meta import Key
from kaito.clock import time_limit
from kaito.controller.controller import Controller, ticks
from kaito.controller.events import EventRecorder, ObjectRef
from kaito.controller.result import Result
from kaito.controller.workqueue import WorkQueue
from kaito.informers.freshness import Freshness
from kaito.informers.handlers import Change
from kaito.kube.client import KubeClient
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeApiServer, FakeInformer, Thing
from tests.unit.controller.runs import Log, own_key, running

ROOT = Path(kaito.__file__).parent

SWALLOWING_ROOTS = {
    ("controller/leader.py", "_campaign"): "the root of the elector's thread: nobody awaits it",
    ("informers/watcher.py", "run"): "raises RuntimeError for one that nobody asked for",
    ("sandbox/aks.py", "stop"): "awaits the task that it has just cancelled itself",
}
"""Handlers that may end a cancellation, by file and function, with the reason."""

HELD_TASKS = {
    "kube/credentials.py": "kept in an attribute, waited for by all who need it or ended by close",
    "sandbox/aks.py": "kept in an attribute until it is cancelled and awaited",
}
"""Files that make tasks outside a TaskGroup, with the reason."""


async def test_a_cancellation_in_the_turn_of_the_answer_ends_the_task(clock: FakeClock) -> None:
    """P1: the answer is there already, and the task must not go on with it."""
    answer = asyncio.get_running_loop().create_future()
    went_on = False

    async def wait() -> None:
        nonlocal went_on
        async with time_limit(clock, 10):
            await answer
        went_on = True

    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait())
        await settle()
        answer.set_result(None)
        task.cancel()
    assert task.cancelled()
    assert not went_on


def test_nothing_waits_by_what_swallows_cancellations_or_loses_wake_ups() -> None:
    """P1, P2: asyncio.wait_for and asyncio.Condition, however they are reached."""
    banned = {"wait_for", "Condition"}
    found = []
    for path, node in _nodes(ast.Attribute, ast.ImportFrom):
        if isinstance(node, ast.Attribute):
            module, names = ast.unparse(node.value), {node.attr}
        else:
            assert isinstance(node, ast.ImportFrom)
            module, names = node.module or "", {alias.name for alias in node.names}
        if module.partition(".")[0] == "asyncio" and names & (banned | {"*", "locks", "tasks"}):
            found.append((path, ast.unparse(node)))
    assert found == []


async def test_pending_runs_survive_the_garbage_collector(clock: FakeClock) -> None:
    """P3: a run that waits for a future that nobody else knows, through 1,000 collections."""

    async def reconcile(_: Key) -> Result:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    controller = Controller("pending", reconcile, clock=clock)
    controller.follow(ticks(clock, 60, ("", "tick")))
    async with asyncio.TaskGroup() as group:
        run = group.create_task(controller.run())
        await settle()
        for i in range(8):
            controller.enqueue(("", str(i)))
        await settle()
        before = len(asyncio.all_tasks())
        gc.freeze()  # what is older cannot hide a task, and would only make this slow
        try:
            for _ in range(1000):
                gc.collect()
        finally:
            gc.unfreeze()
        assert len(asyncio.all_tasks()) == before
        assert len(controller.running) == 8
        run.cancel()
    assert run.cancelled()


def test_every_task_belongs_to_a_group() -> None:
    """P3: the loop itself holds tasks only weakly."""
    groups = {"group", "tasks", "self._group", "self._tasks"}
    found = {
        path
        for path, node in _nodes(ast.Call)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("create_task", "ensure_future")
        and ast.unparse(node.func.value) not in groups
    }
    assert found <= HELD_TASKS.keys()


def test_every_handler_of_a_cancellation_raises_it_again() -> None:
    """P6: or is the listed root of a task."""
    found = {
        (path, function.name)
        for path, function in _nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if (isinstance(node, ast.ExceptHandler) and _catches(node) and not _ends_raising(node))
        or (isinstance(node, ast.Call) and _suppresses(node))
    }
    assert found <= SWALLOWING_ROOTS.keys()


def _nodes(*types: type[ast.AST]) -> Iterator[tuple[str, Any]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in _parsed(path):
            if isinstance(node, types):
                yield str(path.relative_to(ROOT)), node


@cache
def _parsed(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))


def _names_cancellation(node: ast.AST) -> bool:
    words = {getattr(n, "attr", getattr(n, "id", "")) for n in ast.walk(node)}
    return bool(words & {"CancelledError", "BaseException", "BaseExceptionGroup"})


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or _names_cancellation(handler.type)


def _ends_raising(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _suppresses(call: ast.Call) -> bool:
    return ast.unparse(call.func).endswith("suppress") and any(map(_names_cancellation, call.args))


def _controller(clock: FakeClock) -> Callable[[], Awaitable[None]]:
    async def reconcile(key: Key) -> Result:
        await clock.sleep(1)
        return Result(requeue=True)

    informer = FakeInformer()
    informer.objects = {("default", name): Thing(name) for name in "abcdefghij"}
    controller = Controller("stopped", reconcile, clock=clock)
    controller.watch(cast(Any, informer), own_key)
    controller.follow(ticks(clock, 1, ("", "tick")))
    return controller.run


def _consumer(clock: FakeClock) -> Callable[[], Awaitable[None]]:
    queue: WorkQueue[str] = WorkQueue(clock=clock)
    queue.add("a")
    queue.add_after("b", 1)

    async def consume() -> None:
        while True:
            key = str(await queue.get())
            queue.done(key)
            queue.add_after(key, 1)

    return consume


def _recorder(clock: FakeClock) -> Callable[[], Awaitable[None]]:
    client = cast(KubeClient, FakeApiServer().client())
    recorder = EventRecorder(client, clock=clock, controller="kaito.sh/x", instance="i")
    about = ObjectRef("v1", "Thing", "default", "a", "uid-a")

    async def send() -> None:
        for i in range(5):
            recorder.record(about, "Normal", "Launched", "Launch", f"note {i}")
        await recorder.run()

    return send


def _freshness(clock: FakeClock) -> Callable[[], Awaitable[None]]:
    return Freshness(clock=clock).run


@pytest.mark.parametrize("make", [_controller, _consumer, _recorder, _freshness])
@pytest.mark.parametrize("turns", range(40))
async def test_a_stop_at_any_await_ends_the_component(
    clock: FakeClock, make: Callable[[FakeClock], Callable[[], Awaitable[None]]], turns: int
) -> None:
    """P6: in whichever turn of the loop it comes, while time passes too."""
    run = make(clock)

    async def root() -> None:
        await run()

    with capture_logs():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(root())
            for turn in range(turns):
                await asyncio.sleep(0)
                if turn % 5 == 4:
                    clock._boot += 1
                    _fire(clock)
            task.cancel()
            await settle()
            assert task.done()
    assert task.cancelled()


def _fire(clock: FakeClock) -> None:
    """Run what is due, without a turn of the loop."""
    for due, _, timer in list(clock._timers):
        if due <= clock.monotonic() and timer.callback is not None:
            callback, timer.callback = timer.callback, None
            callback()


@pytest.mark.parametrize("limit", [asyncio.timeout, None])
async def test_a_timeout_is_a_failure_and_a_cancellation_is_not(
    clock: FakeClock, limit: Callable[[float], Any] | None
) -> None:
    """P7: both kinds through the worker: one tries again, the other ends the run."""
    tries = 0

    async def reconcile(_: Key) -> Result:
        nonlocal tries
        tries += 1
        if limit is None:
            await asyncio.Event().wait()
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
        raise AssertionError

    controller = Controller("both kinds", reconcile, clock=clock)
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            run = group.create_task(controller.run())
            await settle()
            controller.enqueue(("", "a"))
            await settle()
            await clock.advance(1)
            run.cancel()
    assert run.cancelled()
    assert controller.running == ()
    events = {entry["event"] for entry in logs if entry["log_level"] == "warning"}
    assert (tries > 1, events) == (
        (False, set()) if limit is None else (True, {"reconcile failed"})
    )


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError])
async def test_both_kinds_pass_through_the_sender(
    clock: FakeClock, error: type[BaseException]
) -> None:
    """P7: neither is taken for an answer of the server."""
    client = FakeApiServer().client()

    def fail(_: str) -> None:
        raise error

    client.before = fail
    recorder = EventRecorder(
        cast(KubeClient, client), clock=clock, controller="kaito.sh/x", instance="i"
    )
    about = ObjectRef("v1", "Thing", "default", "a", "uid-a")
    recorder.record(about, "Normal", "Launched", "Launch", "note")
    with capture_logs(), pytest.raises(error):
        await recorder.run()


async def test_tasks_and_timers_do_not_grow_with_objects(clock: FakeClock) -> None:
    """P15: none per event and none per add; runs are as many as there are workers."""
    counts = []
    for objects in (10, 5000):
        log, informer = Log(), FakeInformer()
        controller = Controller("counted", log, clock=clock)
        controller.watch(cast(Any, informer), own_key)
        log.gate.clear()
        async with running(controller):
            timers = len(clock._timers)
            for i in range(objects):
                informer.tell(Change(None, Thing(f"o{i}")))
            controller._queue.add_after(("", "later"), 60)
            await settle()
            counts.append((len(asyncio.all_tasks()), len(clock._timers) - timers))
            for task in controller._running.values():
                task.cancel()
            log.gate.set()
            controller.stop()
    assert counts[0] == counts[1]
