"""Starts and stops what the operator is made of, in an order that keeps every promise.

Start: probes, caches until they are synced, runnables of every replica, election, controllers and
what else only the leader may run. Stop: the reverse, then Events are flushed and the Lease given up
last, when nothing that it guarded can write any more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import structlog

from kaito.clock import Clock, time_limit
from kaito.controller.controller import Controller
from kaito.controller.events import EventRecorder
from kaito.controller.leader import Elector
from kaito.controller.looplag import LoopWatch
from kaito.controller.probes import Probes
from kaito.errors import StopTimeout, SyncTimeout
from kaito.informers.collector import Collector
from kaito.informers.informer import Informer, InformerSet

log = structlog.get_logger()

FLUSH_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 20.0
"""Of a stop. Not controller-runtime's 30: that is when the kubelet kills, and the Lease is still to
be given up and Events to be sent by then."""
FOR_EVER: Final = 1e8
LAST_MOMENT: Final = 1.0
"""For what is told to stop only after the grace was used up by something else."""
CANCELLED_SECONDS: Final = 5.0
"""For the last steps of what was cancelled; then the process ends without it."""

_Group = Literal["caches", "always", "leader", "controllers"]
_GROUPS: Final = get_args(_Group)
"""In the order of starting; each is stopped as a whole, the last one first."""
_GUARDED: Final = ("leader", "controllers")


@dataclass(eq=False, slots=True)
class _Runnable:
    """Something with a ``run`` that lasts until it is stopped.

    ``name``: as text, the busy keys of a controller too. ``finish``: asks it to end; None: it is
    told by cancellation.
    """

    name: object
    run: Callable[[], Awaitable[None]]
    finish: Callable[[], None] | None = None
    task: asyncio.Task[None] | None = None

    def stop(self, *, at_once: bool) -> None:
        if self.finish is not None and not at_once:
            self.finish()
        elif self.task is not None:
            self.task.cancel()


@dataclass(eq=False, kw_only=True)
class Manager:
    """Runs once. ``grace``: seconds for a stop; 0 cancels at once, below 0 waits for ever.

    ``exit_process``: called with 1 when something does not end though it was cancelled.
    """

    clock: Clock
    elector: Elector | None = None
    probes: Probes | None = None
    recorder: EventRecorder | None = None
    collector: Collector | None = None
    grace: float = GRACE_SECONDS
    sync_timeout: float = 120.0
    exit_process: Callable[[int], object] = os._exit

    def __post_init__(self) -> None:
        self._loop_watch = LoopWatch(clock=self.clock)
        self._informers: list[InformerSet] = []
        self._controllers: list[Controller] = []
        self._groups: dict[_Group, list[_Runnable]] = {group: [] for group in _GROUPS}
        self._started: set[_Group] = set()  # new members of these start at once
        self._tasks = asyncio.TaskGroup()
        self._halt = asyncio.Event()
        self._failure: BaseException | None = None
        self._has_lost = False  # another replica may lead: nothing may write, no grace
        self._has_run = False
        self._stuck: list[str] = []  # what was cancelled and did not end

    # Before run ---------------------------------------------------------------------------------

    def add_informers(self, informers: InformerSet) -> None:
        """Sync these caches before anything that reads them starts."""
        self._informers.append(informers)
        self._add("caches", _Runnable("caches", informers.run))

    def add_controller(self, controller: Controller) -> None:
        """Run it on the leader only.

        Raises:
            ValueError: there is one of that name; they would share metrics and writes.
        """
        if any(known.name == controller.name for known in self._controllers):
            raise ValueError(f"there is a controller named {controller.name!r} already")
        self._controllers.append(controller)
        self._add("controllers", _Runnable(controller, controller.run, controller.stop))

    def add_runnable(
        self, name: str, run: Callable[[], Awaitable[None]], *, leader_only: bool
    ) -> None:
        """Run it until the stop, which cancels it. Returning earlier is an error.

        Added while its group runs, it starts at once.

        Raises:
            RuntimeError: the stop has begun.
        """
        self._add("leader" if leader_only else "always", _Runnable(name, run))

    def _add(self, group: _Group, runnable: _Runnable) -> None:
        if self._halt.is_set():
            raise RuntimeError(f"{runnable.name} comes too late: the manager is stopping")
        self._groups[group].append(runnable)
        if group in self._started:
            self._launch(runnable)

    # Running ------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set, which a failure does too.

        Raises:
            InvalidSettings: an address of the probes cannot be bound.
            SyncTimeout: caches did not sync; names the kinds.
            LeadershipLost: another replica may be leading.
            StopTimeout: something outlived the grace period; names it.
            RuntimeError: called twice. Any other error is the first that a runnable raised.
        """
        if self._has_run:
            raise RuntimeError("a manager runs once")
        self._has_run, self._halt = True, stop
        async with AsyncExitStack() as parts:  # what comes first here goes last
            if self.elector is not None:
                parts.push_async_callback(self.elector.release)
            if self.probes is not None:
                self._add_checks(self.probes)
                self.probes.start()
                parts.callback(self.probes.stop)
            self._loop_watch.start()
            parts.callback(self._loop_watch.stop)
            if self.collector is not None:
                self.collector.pause()
                parts.callback(self.collector.close)
            async with self._tasks:
                await self._run()
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        helpers = [self._tasks.create_task(self._heed())]  # these go on during the stop
        if self.recorder is not None:
            helpers.append(self._tasks.create_task(self._guard("events", self.recorder.run)))
        starting = self._tasks.create_task(self._start())
        try:
            await self._halt.wait()
        finally:
            self._halt.set()
            starting.cancel()
            await self._stop()
            for helper in helpers:
                helper.cancel()

    async def _start(self) -> None:
        try:
            await self._launch_group("caches")
            ends_at = self.clock.monotonic() + self.sync_timeout
            for informers in self._informers:
                await informers.wait_synced(self._time_left(ends_at))
            if self.collector is not None:
                self.collector.settle()
            await self._launch_group("always")
            if self.elector is not None:
                self.elector.start()
                await self.elector.acquired()
            for group in _GUARDED:
                await self._launch_group(group)
        except SyncTimeout as err:
            late = [str(controller) for controller in self._controllers if controller.unsynced()]
            self._fail(SyncTimeout(f"{err}; not started: {', '.join(late) or 'nothing'}"), "start")
        except Exception as err:  # noqa: BLE001 - a task root: raised by run()
            self._fail(err, "start")

    async def _heed(self) -> None:
        """Until the stop is done: leadership may be lost during its grace too (facts E14)."""
        if self.elector is None:
            return
        error = await self.elector.lost()
        self._has_lost = True
        self._fail(error, "election")
        for runnable in (r for group in _GUARDED for r in self._groups[group]):
            runnable.stop(at_once=True)

    async def _launch_group(self, group: _Group) -> None:
        if self._halt.is_set():
            return
        self._started.add(group)
        for runnable in self._groups[group]:
            self._launch(runnable)
        await asyncio.sleep(0)  # each makes its first step before the next group starts

    def _launch(self, runnable: _Runnable) -> None:
        runnable.task = self._tasks.create_task(self._guard(runnable.name, runnable.run))

    async def _guard(self, name: object, run: Callable[[], Awaitable[None]]) -> None:
        """No failure may cancel the siblings: they stop in order, by ``_run``."""
        how = "ended by itself"
        try:
            await run()
        except asyncio.CancelledError:
            how = "was cancelled from inside"
            raise
        except Exception as err:  # noqa: BLE001 - a task root: raised by run()
            self._fail(err, str(name))
        finally:
            if not self._halt.is_set():
                self._fail(RuntimeError(f"{name} {how}"))

    def _fail(self, error: BaseException, name: str = "") -> None:
        if self._failure is None:
            self._failure = error
        log.error("stopping on failure", runnable=name, error=repr(error))
        self._halt.set()

    async def _stop(self) -> None:
        ends_at = self.clock.monotonic() + (self.grace if self.grace >= 0 else FOR_EVER)
        for group in reversed(_GROUPS):
            await self._stop_group(group, ends_at)
        if self.probes is not None:
            self.probes.stop()
        if self.recorder is not None and not self._has_lost:
            await self.recorder.flush(min(FLUSH_SECONDS, self._time_left(ends_at)))
        if self._stuck:
            if self.elector is not None:
                await self.elector.release()  # its fence is closed to what goes on
            log.error("ending the process: not ended though cancelled", runnables=self._stuck)
            self.exit_process(1)

    def _time_left(self, ends_at: float) -> float:
        return max(0.0, ends_at - self.clock.monotonic())

    async def _stop_group(self, group: _Group, ends_at: float) -> None:
        running = {r.task: r for r in self._groups[group] if r.task and not r.task.done()}
        if not running:
            return
        if self.grace != 0 and not self._has_lost:
            for runnable in running.values():
                runnable.stop(at_once=False)
            with suppress(TimeoutError):
                async with time_limit(self.clock, self._time_left(ends_at) or LAST_MOMENT):
                    await asyncio.wait(running)
            if late := ", ".join(str(r.name) for task, r in running.items() if not task.done()):
                message = f"still running after {self.grace:g} s, cancelled: {late}"
                self._fail(StopTimeout(message))
        for runnable in running.values():
            runnable.stop(at_once=True)
        with suppress(TimeoutError):
            async with time_limit(self.clock, CANCELLED_SECONDS):
                await asyncio.wait(running)
        self._stuck += [str(r.name) for task, r in running.items() if not task.done()]

    # Health -------------------------------------------------------------------------------------

    def _add_checks(self, probes: Probes) -> None:
        probes.add_liveness("loop", self._loop_watch.health)
        if self.elector is not None:
            probes.add_liveness("leader-election", self.elector.health)
        probes.add_readiness("caches", self._unready_caches)

    def _unready_caches(self) -> str | None:
        """What is missing or stale, by kind. Called from the probes' threads."""
        informers = (informer for group in self._informers for informer in group)
        found = [f"{i.kind} ({cause})" for i in informers if (cause := _unready(i)) is not None]
        return f"waiting for cache: {', '.join(found)}" if found else None


def _unready(informer: Informer[Any]) -> str | None:
    """Why a cache does not tell what is; silence counts from twice what its watch allows."""
    if not informer.is_served:
        return None if informer.optional else informer.last_error or "not served"
    if not informer.has_synced:
        return informer.last_error or "being listed"
    silent = informer.staleness()
    if silent <= 2 * informer.idle_limit:
        return None
    return f"{informer.last_error or 'no answer'} for {silent:.0f} s"
