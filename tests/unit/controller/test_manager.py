"""M1 to M9, M14: order of start and stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from kaito.api.meta import Key
from kaito.controller.controller import Controller
from kaito.controller.manager import Manager
from kaito.controller.probes import Probes
from kaito.controller.result import Result
from kaito.errors import InvalidSettings, KaitoError, LeadershipLost, StopTimeout, SyncTimeout
from kaito.informers.informer import Informer
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeInformer


class Stage:
    """A manager with every part faked, and a diary of what happened."""

    def __init__(self, clock: FakeClock, **settings: Any) -> None:
        self.diary: list[str] = []
        self.synced = asyncio.Event()
        self.won = asyncio.Event()
        self.over: asyncio.Future[KaitoError] = asyncio.get_running_loop().create_future()
        self.informers: list[FakeInformer] = []
        self.stop = asyncio.Event()
        self.manager = Manager(clock=clock, **settings)

    @classmethod
    def whole(cls, clock: FakeClock, **settings: Any) -> Stage:
        stage = cls(clock)
        stage.manager = Manager(
            clock=clock,
            elector=cast(Any, FakeElector(stage)),
            probes=cast(Any, FakeProbes(stage)),
            recorder=cast(Any, FakeRecorder(stage)),
            **settings,
        )
        stage.manager.add_informers(cast(Any, FakeInformers(stage)))
        stage.manager.add_runnable("always", stage.runs("always"), leader_only=False)
        stage.manager.add_runnable("leading", stage.runs("leading"), leader_only=True)
        return stage

    def runs(self, name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            self.diary.append(f"{name} started")
            try:
                await asyncio.Event().wait()
            finally:
                self.diary.append(f"{name} stopped")

        return run

    @asynccontextmanager
    async def running(self, said: list[Any] | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """Stops the manager in the end; its error is the block's. ``said``: gets the log."""
        with capture_logs() as logs:
            task = asyncio.get_running_loop().create_task(self.manager.run(self.stop))
            await settle()
            try:
                yield task
            finally:
                self.stop.set()
            try:
                await task
            finally:
                if said is not None:
                    said += logs


class FakeElector:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def start(self) -> None:
        self.stage.diary.append("campaign started")

    async def acquired(self) -> None:
        await self.stage.won.wait()

    async def lost(self) -> KaitoError:
        return await asyncio.shield(self.stage.over)

    async def release(self) -> None:
        self.stage.diary.append("lease released")

    def health(self) -> str | None:
        return None


class FakeProbes:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.checks: dict[str, Callable[[], str | None]] = {}
        self.is_up = False

    def add_liveness(self, name: str, check: Callable[[], str | None]) -> None:
        self.checks[name] = check

    add_readiness = add_liveness

    def start(self) -> None:
        self.is_up = True
        self.stage.diary.append("probes started")

    def stop(self) -> None:
        if self.is_up:
            self.stage.diary.append("probes stopped")
        self.is_up = False


class FakeRecorder:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def flush(self, timeout: float) -> None:
        self.stage.diary.append(f"events flushed within {timeout:g} s")


class FakeInformers:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.run = stage.runs("caches")

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter(cast(list[Any], self.stage.informers))

    async def wait_synced(self, timeout: float) -> None:
        await self.stage.synced.wait()


START = ["probes started", "caches started", "always started", "campaign started"]
STOP = [
    "leading stopped",
    "always stopped",
    "caches stopped",
    "probes stopped",
    "events flushed within 5 s",
    "lease released",
]


async def test_everything_starts_and_stops_in_order(clock: FakeClock) -> None:
    """M1, M5: each group waits for the one before; the Lease goes last."""
    threads = threading.active_count()
    stage = Stage.whole(clock)
    async with stage.running():
        assert stage.diary == START[:2]
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
    assert stage.diary == [*START[:2], "caches stopped", "probes stopped", "lease released"]


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
    assert stage.diary[-5:] == STOP[1:]


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
    """M11, M13"""
    stage = Stage(clock, probes=Probes(health_address="0", metrics_address="nowhere"))
    stage.manager.add_runnable("always", stage.runs("always"), leader_only=False)
    with pytest.raises(InvalidSettings):
        await stage.manager.run(stage.stop)
    assert stage.diary == []


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


async def test_readiness_says_which_cache_is_missing_or_stale(clock: FakeClock) -> None:
    """M9, M14: also one whose CRD vanished, unless it is optional; a standby is ready."""
    stage = Stage(clock)
    probes = FakeProbes(stage)
    stage.manager = Manager(clock=clock, probes=cast(Any, probes))
    stage.manager.add_informers(cast(Any, FakeInformers(stage)))
    optional, missing = FakeInformer(synced=False), FakeInformer(synced=False)
    optional.optional, optional.is_served = True, False
    missing.last_error = "403 list things"
    stage.informers += [optional, missing]
    stage.synced.set()
    async with stage.running():
        ready = probes.checks["caches"]
        assert ready() == "waiting for cache: things (403 list things)"
        missing.synced.set()
        assert ready() is None
        missing.silent, missing.last_error = 200, None
        assert ready() == "waiting for cache: things (no answer for 200 s)"
        missing.is_served, missing.silent = False, 0.0
        assert ready() == "waiting for cache: things (not served)"
        missing.last_error = "404 list things"
        assert ready() == "waiting for cache: things (404 list things)"
        missing.is_served = True
        assert ready() is None
        assert probes.checks["loop"]() is None
