"""Traps of Python that the framework keeps out of, as a whole."""

from __future__ import annotations

import ast
import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaito.api.meta import Key
from kaito.controller.controller import Controller
from kaito.controller.result import Result
from kaito.controller.workqueue import WorkQueue
from kaito.informers.freshness import Freshness
from kaito.informers.handlers import own_key
from kaito.reconcilers.kinds import SERVICES
from tests.fakes.clock import FakeClock, settle
from tests.fakes.kube import FakeKube
from tests.fakes.mutation import WatchedInformerSet

ROOMS = [Path(__file__).parents[2] / "kaito" / room for room in ("kube", "informers", "controller")]


def imported(room: Path) -> Iterator[tuple[str, str]]:
    """(module file, dotted name) of all that the room imports or names."""
    for path in sorted(room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names=names):
                    yield from ((path.name, name.name) for name in names)
                case ast.ImportFrom(module=str(module), names=names):
                    yield from ((path.name, f"{module}.{name.name}") for name in names)
                case ast.Attribute(value=ast.Name(id=base), attr=attr):
                    yield path.name, f"{base}.{attr}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_nothing_is_copied_deep(room: Path) -> None:
    """P16: nor encoded to be decoded again, which is the same at a sixth of the price."""
    found = {name for _, name in imported(room) if name.partition(".")[0] == "copy"}
    assert found == set()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_what_loses_wakeups_or_cancellations_is_not_used(room: Path) -> None:
    """P1, P2, P3: by any import; ruff bans them by name."""
    banned = {"asyncio.wait_for", "asyncio.Condition", "asyncio.create_task", "asyncio.gather"}
    assert banned & {name for _, name in imported(room)} == set()


async def test_a_wakeup_of_a_cancelled_getter_is_passed_on() -> None:
    """P2: woken and cancelled in one turn; asyncio.Condition would leave the second asleep."""
    queue: WorkQueue[str] = WorkQueue(clock=FakeClock())
    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(queue.get()) for _ in range(2))
        await settle()
        queue.add("a")
        first.cancel()
    assert second.result() == "a"


async def test_no_task_is_left_to_the_garbage_collector() -> None:
    """P3: a thousand collections, and all that ran still runs."""
    clock = FakeClock()
    kube = FakeKube(clock=clock)
    seen: list[Key] = []

    async def reconcile(key: Key) -> Result:
        seen.append(key)
        return Result()

    gc.collect()
    gc.freeze()  # what is here already makes no collection longer
    try:
        freshness = Freshness(clock=clock, read=kube.get)
        informers = WatchedInformerSet(kube, clock=clock)
        controller = Controller("traps", reconcile, clock=clock, freshness=freshness)
        controller.watch(informers.informer(SERVICES), own_key)
        async with asyncio.TaskGroup() as group:
            parts = (informers, freshness, controller)
            running = [group.create_task(part.run()) for part in parts]
            await settle()
            before = len(asyncio.all_tasks())  # a number: the set would keep them alive
            for _ in range(1_000):
                gc.collect()
            assert len(asyncio.all_tasks()) == before
            kube.seed(SERVICES, {"metadata": {"namespace": "ns", "name": "a"}})
            await settle(60)
            for task in running:
                task.cancel()
    finally:
        gc.unfreeze()
    assert seen == [("ns", "a")]
