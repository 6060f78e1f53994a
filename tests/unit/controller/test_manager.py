"""M1 to M9, M14: order of start and stop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from kaito.api.meta import Key
from kaito.controller.controller import Controller
from kaito.controller.probes import Probes
from kaito.controller.result import Result
from kaito.errors import InvalidSettings, LeadershipLost, StopTimeout, SyncTimeout
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeInformer, Thing
from tests.unit.controller.stage import FakeInformers, Stage

START = [
    "probes started",
    "collector paused",
    "caches started",
    "collector settled",
    "always started",
    "campaign started",
]
STOP = [
    "leading stopped",
    "always stopped",
    "caches stopped",
    "probes stopped",
    "events flushed within 5 s",
    "collector closed",
    "lease released",
]


async def test_everything_starts_and_stops_in_order(clock: FakeClock) -> None:
    """M1, M5, S18: each group waits for the one before; the Lease goes last."""
    threads = threading.active_count()
    stage = Stage.whole(clock)
    async with stage.running():
        assert stage.diary == START[:3]
        stage.synced.set()
        await settle()
        assert stage.diary == START
        stage.won.set()
        await settle()
        assert stage.diary == [*START, "leading started"]
    assert stage.diary == [*START, "leading started", *STOP]
    assert threading.active_count() == threads
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_stopped_before_elected_it_never_leads(clock: FakeClock) -> None:
    """M6"""
    stage = Stage.whole(clock)
    stage.synced.set()
    async with stage.running():
        stage.stop.set()
        stage.won.set()
    assert stage.diary == [*START, *STOP[1:]]


async def test_stopped_before_the_caches_synced(clock: FakeClock) -> None:
    """M5, M6"""
    stage = Stage.whole(clock)
    async with stage.running():
        pass
    assert stage.diary == [*START[:3], *STOP[2:]]


async def test_without_election_the_leader_only_start_at_once(clock: FakeClock) -> None:
    """E23"""
    stage = Stage(clock)
    stage.manager.add_runnable("leading", stage.runs("leading"), leader_only=True)
    async with stage.running():
        assert stage.diary == ["leading started"]


async def test_lost_leadership_stops_at_once_and_is_raised(clock: FakeClock) -> None:
    """E14, M4: grace 0; Events are not flushed, as no write may go out."""
    stage = Stage.whole(clock)
    stage.synced.set()
    stage.won.set()
    gate = asyncio.Event()
    controller = busy_controller(clock, gate)
    stage.manager.add_controller(controller)
    with pytest.raises(LeadershipLost):  # noqa: PT012 - raised by the end of the inner block
        async with stage.running() as task:
            controller.enqueue(("", "a"))
            await settle()
            stage.over.set_result(LeadershipLost("rival"))
            await settle(60)
            assert task.done()
    assert controller.running == ()
    assert not any(line.startswith("events") for line in stage.diary)
    assert stage.diary[-1] == "lease released"


def busy_controller(clock: FakeClock, gate: asyncio.Event, name: str = "things") -> Controller:
    async def reconcile(_: Key) -> Result:
        await gate.wait()
        return Result()

    return Controller(name, reconcile, clock=clock)


async def test_caches_that_do_not_sync_fail_the_start(clock: FakeClock) -> None:
    """C2, M2"""

    class Late(FakeInformers):
        async def wait_synced(self, timeout: float) -> None:
            assert timeout == 120
            raise SyncTimeout("nodes: 403 list nodes")

    stage = Stage(clock)
    stage.manager.add_informers(cast(Any, Late(stage)))
    stage.manager.add_runnable("always", stage.runs("always"), leader_only=False)
    with pytest.raises(SyncTimeout, match="nodes: 403"):
        async with stage.running():
            pass
    assert stage.diary == ["caches started", "caches stopped"]


async def test_a_start_that_fails_names_the_controllers_that_waited(clock: FakeClock) -> None:
    """C2: beside the kind and the last reason, which the caches tell."""

    class Late(FakeInformers):
        async def wait_synced(self, timeout: float) -> None:
            raise SyncTimeout("nodes: 403 list nodes")

    stage = Stage(clock)
    stage.manager.add_informers(cast(Any, Late(stage)))
    for name, synced in (("waiting", False), ("content", True)):
        controller = busy_controller(clock, asyncio.Event(), name)
        controller.watch(cast(Any, FakeInformer(synced=synced)), lambda _: None)
        stage.manager.add_controller(controller)
    with pytest.raises(SyncTimeout, match=r"403 list nodes; not started: controller waiting$"):
        async with stage.running():
            pass


async def test_caches_share_one_limit(clock: FakeClock) -> None:
    """M2: they sync in parallel; who waits second has what the first has left."""

    class Slow(FakeInformers):
        async def wait_synced(self, timeout: float) -> None:
            self.stage.diary.append(f"waits {timeout:g} s")
            await clock.sleep(50)

    stage = Stage(clock)
    for _ in range(2):
        stage.manager.add_informers(cast(Any, Slow(stage)))
    async with stage.running():
        await clock.advance(100)
    assert stage.diary[:4] == ["caches started"] * 2 + ["waits 120 s", "waits 70 s"]


async def test_a_fault_in_the_start_stops_in_order_too(clock: FakeClock) -> None:
    """M4, P7"""

    class Broken(FakeInformers):
        async def wait_synced(self, timeout: float) -> None:
            raise ZeroDivisionError

    stage = Stage(clock)
    stage.manager.add_informers(cast(Any, Broken(stage)))
    with pytest.raises(ZeroDivisionError):
        async with stage.running():
            pass
    assert stage.diary == ["caches started", "caches stopped"]


async def test_a_standby_keeps_caches_and_takes_over_without_a_list(clock: FakeClock) -> None:
    """M2: the queue is filled from the cache; until then no worker runs."""
    stage = Stage.whole(clock)
    seen: list[Key] = []

    async def reconcile(key: Key) -> Result:
        seen.append(key)
        return Result()

    cache = FakeInformer()
    cache.tell(Change(None, Thing("a")))
    controller = Controller("things", reconcile, clock=clock)
    controller.watch(cast(Informer[Any], cache), lambda change: [change.obj.metadata.key])
    stage.manager.add_controller(controller)
    stage.synced.set()
    async with stage.running():
        cache.tell(Change(None, Thing("b")))
        await settle()
        assert seen == []
        stage.won.set()
        await settle(60)
        assert sorted(seen) == [("default", "a"), ("default", "b")]
        assert stage.diary.count("caches started") == 1


async def test_the_first_error_stops_everything_and_is_raised(clock: FakeClock) -> None:
    """M4: later ones are logged only."""
    stage = Stage.whole(clock)
    stage.synced.set()

    async def fail() -> None:
        raise ZeroDivisionError

    async def fail_in_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError

    stage.manager.add_runnable("later", fail_in_the_end, leader_only=False)
    stage.manager.add_runnable("first", fail, leader_only=False)
    with pytest.raises(ZeroDivisionError):
        async with stage.running():
            await settle(60)
    assert stage.diary[-6:] == STOP[1:]


async def test_a_runnable_that_ends_by_itself_is_an_error(clock: FakeClock) -> None:
    """P4"""
    stage = Stage(clock)

    async def end() -> None:
        await settle(1)

    stage.manager.add_runnable("short", end, leader_only=False)
    with pytest.raises(RuntimeError, match="short ended by itself"):
        async with stage.running():
            await settle()


async def test_a_runnable_cancelled_from_inside_is_an_error(clock: FakeClock) -> None:
    """P4"""
    stage = Stage(clock)

    async def end() -> None:
        raise asyncio.CancelledError

    stage.manager.add_runnable("odd", end, leader_only=False)
    with pytest.raises(RuntimeError, match="odd was cancelled from inside"):
        async with stage.running():
            await settle()


async def test_controllers_finish_their_keys_within_the_grace(clock: FakeClock) -> None:
    """C10, M5: before the runnables that they may need."""
    stage = Stage(clock)
    gate = asyncio.Event()
    controller = busy_controller(clock, gate)
    stage.manager.add_controller(controller)
    stage.manager.add_runnable("leading", stage.runs("leading"), leader_only=True)
    async with stage.running():
        controller.enqueue(("ns", "a"))
        await settle()
        stage.stop.set()
        await clock.advance(19)
        assert controller.running == (("ns", "a"),)
        assert "leading stopped" not in stage.diary
        gate.set()
    assert stage.diary[-1] == "leading stopped"


async def test_what_exceeds_the_grace_is_cancelled_and_named(clock: FakeClock) -> None:
    """C10, M5: it alone; what was told to stop only after that is not to blame."""
    stage = Stage.whole(clock)
    stage.synced.set()
    stage.won.set()
    controller = busy_controller(clock, asyncio.Event())
    stage.manager.add_controller(controller)
    said: list[Any] = []
    with pytest.raises(StopTimeout, match=r"things \(ns/a, ns/b\)"):  # noqa: PT012 - see above
        async with stage.running(said):
            controller.enqueue(("ns", "a"))
            controller.enqueue(("ns", "b"))
            await settle()
            stage.stop.set()
            await clock.advance(20)
    assert controller.running == ()
    assert len([entry for entry in said if entry["event"] == "stopping on failure"]) == 1
    assert stage.diary[-1] == "lease released"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_what_does_not_end_though_cancelled_holds_no_one_up(
    clock: FakeClock, is_lost: bool
) -> None:
    """C10, E14, M5: Events go, the Lease is given up, and the process ends without it."""
    exits: list[int] = []
    stage = Stage.whole(clock, exit_process=exits.append)
    stage.synced.set()
    stage.won.set()
    freed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            while not freed.is_set():
                with suppress(asyncio.CancelledError):
                    await freed.wait()

    stage.manager.add_runnable("stubborn", stubborn, leader_only=True)
    said: list[Any] = []
    with pytest.raises((StopTimeout, LeadershipLost)):  # noqa: PT012 - see above
        async with stage.running(said):
            if is_lost:
                stage.over.set_result(LeadershipLost("gone"))
                await settle()
            else:
                stage.stop.set()
                await clock.advance(20)
            await clock.advance(5)
            told, before_its_end = list(exits), list(stage.diary)
            freed.set()
    assert told == [1]
    assert before_its_end[-1] == "lease released"
    assert [entry["runnables"] for entry in said if "runnables" in entry] == [["stubborn"]]


async def test_leadership_lost_during_the_grace_ends_it_and_is_raised(clock: FakeClock) -> None:
    """E14: no reconcile goes on, and the process does not end as clean."""
    stage = Stage.whole(clock)
    stage.synced.set()
    stage.won.set()
    controller = busy_controller(clock, asyncio.Event())
    stage.manager.add_controller(controller)
    with pytest.raises(LeadershipLost):  # noqa: PT012 - see above
        async with stage.running():
            controller.enqueue(("ns", "a"))
            await settle()
            stage.stop.set()
            await settle()
            assert controller.running == (("ns", "a"),)
            stage.over.set_result(LeadershipLost("rival"))
            await settle()
            assert controller.running == ()
    assert not any(line.startswith("events") for line in stage.diary)
    assert stage.diary[-1] == "lease released"


async def test_no_grace_cancels_at_once_and_a_negative_one_waits(clock: FakeClock) -> None:
    """M5"""
    at_once, patient = Stage(clock, grace=0), Stage(clock, grace=-1)
    gate = asyncio.Event()
    for stage, name in ((at_once, "one"), (patient, "two")):
        controller = busy_controller(clock, gate, name)
        stage.manager.add_controller(controller)
        controller.enqueue(("", "a"))
    async with at_once.running() as task:
        at_once.stop.set()
        await settle()
        assert task.done()
    async with patient.running() as task:
        patient.stop.set()
        await clock.advance(100)
        assert not task.done()
        gate.set()


async def test_a_runnable_added_later_starts_at_once(clock: FakeClock) -> None:
    """M3: after the stop began it is refused."""
    stage = Stage.whole(clock)
    stage.synced.set()
    async with stage.running():
        stage.manager.add_runnable("late", stage.runs("late"), leader_only=False)
        stage.manager.add_runnable("standby", stage.runs("standby"), leader_only=True)
        await settle()
        assert "late started" in stage.diary
        assert "standby started" not in stage.diary
    assert "late stopped" in stage.diary
    with pytest.raises(RuntimeError, match="too late"):
        stage.manager.add_runnable("last", stage.runs("last"), leader_only=False)


async def test_two_controllers_of_one_name_are_refused(clock: FakeClock) -> None:
    """C12"""
    stage = Stage(clock)
    gate = asyncio.Event()
    stage.manager.add_controller(busy_controller(clock, gate))
    with pytest.raises(ValueError, match="'things'"):
        stage.manager.add_controller(busy_controller(clock, gate))


async def test_a_manager_runs_once(clock: FakeClock) -> None:
    """M6"""
    stage = Stage(clock)
    async with stage.running():
        pass
    with pytest.raises(RuntimeError, match="runs once"):
        await stage.manager.run(stage.stop)


async def test_a_port_in_use_fails_before_anything_starts(clock: FakeClock) -> None:
    """M11, M13: it alone is told."""
    stage = Stage.whole(clock)
    stage.manager.probes = Probes(health_address="0", metrics_address="nowhere")
    with capture_logs() as logs, pytest.raises(InvalidSettings):
        await stage.manager.run(stage.stop)
    assert not any(line.endswith("started") for line in stage.diary)
    assert logs == []


async def test_being_cancelled_it_stops_in_order_too(clock: FakeClock) -> None:
    """M7"""
    stage = Stage.whole(clock)
    stage.synced.set()
    stage.won.set()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(stage.manager.run(stage.stop))
        await settle()
        task.cancel()
    assert stage.diary == [*START, "leading started", *STOP]
