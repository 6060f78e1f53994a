"""Starts and stops what the operator is made of, in an order that keeps every promise.

Start: probes, caches until they are synced, runnables of every replica, election, controllers and
what else only the leader may run. Stop: the reverse, then Events are flushed and the Lease given up
last, when nothing that it guarded can write any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

import structlog

from kaito.clock import Clock, time_limit
from kaito.controller.controller import Controller
from kaito.controller.events import EventRecorder
from kaito.controller.leader import Elector
from kaito.controller.looplag import LoopWatch
from kaito.controller.probes import Probes
from kaito.errors import KaitoError, StopTimeout
from kaito.informers.informer import InformerSet

log = structlog.get_logger()

FLUSH_SECONDS: Final = 5.0
GRACE_SECONDS: Final = 20.0
"""Of a stop. Below the kubelet's 30: the Lease is given up before it kills."""
LAST_MOMENT: Final = 1.0
"""For what is told to stop only after the grace was used up by something else."""
STALE_SECONDS: Final = 180.0
"""Twice the watch's idle limit: longer silence of a cache is not ready."""


class _Runnable:
    """Something with a ``run`` that lasts until it is stopped."""

    def __init__(
        self, name: str, run: Callable[[], Awaitable[None]], controller: Controller | None = None
    ) -> None:
        self.name = name
        self.run = run
        self.controller = controller
        self.task: asyncio.Task[None] | None = None
        self.is_stopping = False

    def stop(self) -> None:
        """Ask a controller to finish its keys; anything else is told by cancellation."""
        self.is_stopping = True
        if self.controller is not None:
            self.controller.stop()
        else:
            self.cancel()

    def cancel(self) -> None:
        self.is_stopping = True
        if self.task is not None:
            self.task.cancel()

    def __str__(self) -> str:
        keys = self.controller.running if self.controller is not None else ()
        return f"{self.name} ({', '.join('/'.join(k) for k in keys)})" if keys else self.name


class Manager:
    """Runs once. ``grace``: seconds for a stop; 0 cancels at once, below 0 waits for ever."""

    def __init__(
        self,
        *,
        clock: Clock,
        elector: Elector | None = None,
        probes: Probes | None = None,
        recorder: EventRecorder | None = None,
        grace: float = GRACE_SECONDS,
        sync_timeout: float = 120.0,
    ) -> None:
        self._clock = clock
        self._elector = elector
        self._probes = probes
        self._recorder = recorder
        self._grace = grace
        self._sync_timeout = sync_timeout
        self._loop_watch = LoopWatch(clock=clock)
        self._informers: list[InformerSet] = []
        self._always: list[_Runnable] = []
        self._leader_only: list[_Runnable] = []
        self._caches: list[_Runnable] = []
        self._sender: list[_Runnable] = []
        self._started: list[list[_Runnable]] = []  # groups that new members join at once
        self._tasks: asyncio.TaskGroup | None = None
        self._halt = asyncio.Event()
        self._failure: BaseException | None = None
        self._has_lost = False  # another replica may lead: nothing may write, no grace
        self._heeding: asyncio.Task[None] | None = None
        self._has_run = False

    # Before run ---------------------------------------------------------------------------------

    def add_informers(self, informers: InformerSet) -> None:
        """Sync these caches before anything that reads them starts."""
        self._informers.append(informers)
        self._add(self._caches, _Runnable("caches", informers.run))

    def add_controller(self, controller: Controller) -> None:
        """Run it on the leader only.

        Raises:
            ValueError: there is one of that name; they would share metrics and writes.
        """
        if any(r.name == f"controller {controller.name}" for r in self._leader_only):
            raise ValueError(f"there is a controller named {controller.name!r} already")
        runnable = _Runnable(f"controller {controller.name}", controller.run, controller)
        self._add(self._leader_only, runnable)

    def add_runnable(
        self, name: str, run: Callable[[], Awaitable[None]], *, leader_only: bool
    ) -> None:
        """Run it until the stop, which cancels it. Returning earlier is an error.

        Added while its group runs, it starts at once.

        Raises:
            RuntimeError: the stop has begun.
        """
        self._add(self._leader_only if leader_only else self._always, _Runnable(name, run))

    def _add(self, group: list[_Runnable], runnable: _Runnable) -> None:
        if self._halt.is_set():
            raise RuntimeError(f"{runnable.name} comes too late: the manager is stopping")
        group.append(runnable)
        if any(group is started for started in self._started):
            self._launch(runnable)

    # Running ------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set or something fails.

        Raises:
            InvalidSettings: an address of the probes cannot be bound.
            SyncTimeout: caches did not sync; names the kinds.
            LeadershipLost: another replica may be leading.
            StopTimeout: something outlived the grace period; names it.
            RuntimeError: called twice. Any other error is the first that a runnable raised.
        """
        if self._has_run:
            raise RuntimeError("a manager runs once")
        self._has_run = True
        if self._probes is not None:
            self._add_checks(self._probes)
            self._probes.start()
        self._loop_watch.start()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._run(stop)
        finally:
            self._loop_watch.stop()
            if self._probes is not None:
                self._probes.stop()
            if self._elector is not None:
                await self._elector.release()
        if self._failure is not None:
            raise self._failure

    async def _run(self, stop: asyncio.Event) -> None:
        assert self._tasks is not None
        helpers = [
            self._tasks.create_task(self._relay(stop)),
            self._tasks.create_task(self._start()),
        ]
        try:
            await self._halt.wait()
        finally:
            self._halt.set()
            for helper in helpers:
                helper.cancel()
            await self._stop()
            if self._heeding is not None:
                self._heeding.cancel()

    async def _relay(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._halt.set()

    async def _start(self) -> None:
        try:
            await self._launch_group(self._caches)
            ends_at = self._clock.monotonic() + self._sync_timeout
            for informers in self._informers:
                await informers.wait_synced(self._time_left(ends_at))
            if self._recorder is not None:
                self._sender.append(_Runnable("events", self._recorder.run))
            await self._launch_group(self._sender)
            await self._launch_group(self._always)
            if self._elector is None:
                await self._launch_group(self._leader_only)
                return
            self._elector.start()
            assert self._tasks is not None
            self._heeding = self._tasks.create_task(self._heed(self._elector))
            await self._elector.acquired()
            if not self._halt.is_set():
                await self._launch_group(self._leader_only)
        except KaitoError as err:
            self._fail(err)

    async def _heed(self, elector: Elector) -> None:
        """Until the stop is done: leadership may be lost during its grace too (facts E14)."""
        error = await elector.lost()
        self._has_lost = True
        self._fail(error)
        for runnable in self._leader_only:
            runnable.cancel()

    async def _launch_group(self, group: list[_Runnable]) -> None:
        self._started.append(group)
        for runnable in group:
            self._launch(runnable)
        await asyncio.sleep(0)  # each makes its first step before the next group starts

    def _launch(self, runnable: _Runnable) -> None:
        assert self._tasks is not None
        runnable.task = self._tasks.create_task(self._guard(runnable), name=runnable.name)

    async def _guard(self, runnable: _Runnable) -> None:
        """No failure may cancel the siblings: they stop in order, by ``_stop``."""
        try:
            await runnable.run()
        except asyncio.CancelledError:
            if not runnable.is_stopping:
                self._fail(RuntimeError(f"{runnable.name} was cancelled from inside"))
            raise
        except Exception as err:  # noqa: BLE001 - a task root: raised by run()
            self._fail(err, runnable.name)
        else:
            if not runnable.is_stopping:
                self._fail(RuntimeError(f"{runnable.name} ended by itself"))

    def _fail(self, error: BaseException, name: str = "") -> None:
        if self._failure is None:
            self._failure = error
        log.error("stopping on failure", runnable=name, error=repr(error))
        self._halt.set()

    # Stopping -----------------------------------------------------------------------------------

    async def _stop(self) -> None:
        ends_at = self._clock.monotonic() + self._grace if self._grace >= 0 else float("inf")
        controllers = [r for r in self._leader_only if r.controller is not None]
        others = [r for r in self._leader_only if r.controller is None]
        for group in (controllers, others, self._always, self._caches):
            await self._stop_group(group, ends_at)
        if self._probes is not None:
            self._probes.stop()
        if self._recorder is not None and not self._has_lost and self._sender:
            await self._recorder.flush(min(FLUSH_SECONDS, self._time_left(ends_at)))
        await self._stop_group(self._sender, ends_at)

    def _time_left(self, ends_at: float) -> float:
        return max(0.0, ends_at - self._clock.monotonic())

    async def _stop_group(self, group: list[_Runnable], ends_at: float) -> None:
        running = {r.task: r for r in group if r.task is not None and not r.task.done()}
        if not running:
            return
        if self._grace != 0 and not self._has_lost:
            for runnable in running.values():
                runnable.stop()
            await self._wait(running, self._time_left(ends_at) or LAST_MOMENT)
            late = ", ".join(str(r) for task, r in running.items() if not task.done())
            if late:
                message = f"still running after {self._grace:g} s, cancelled: {late}"
                self._fail(StopTimeout(message))
        for runnable in running.values():
            runnable.cancel()
        await asyncio.wait(running)

    async def _wait(self, running: Collection[asyncio.Task[None]], seconds: float) -> None:
        if seconds == float("inf"):
            await asyncio.wait(running)
            return
        with suppress(TimeoutError):
            async with time_limit(self._clock, seconds):
                await asyncio.wait(running)

    # Health -------------------------------------------------------------------------------------

    def _add_checks(self, probes: Probes) -> None:
        probes.add_liveness("loop", self._loop_watch.health)
        if self._elector is not None:
            probes.add_liveness("leader-election", self._elector.health)
        probes.add_readiness("caches", self._unready_caches)

    def _unready_caches(self) -> str | None:
        """What is missing or stale, by kind. Called from the probes' threads."""
        causes = []
        for informers in self._informers:
            for informer in informers:
                if not informer.is_served:
                    if not informer.optional:
                        causes.append(f"{informer.kind} ({informer.last_error or 'not served'})")
                elif not informer.has_synced:
                    causes.append(f"{informer.kind} ({informer.last_error or 'being listed'})")
                elif informer.staleness() > STALE_SECONDS:
                    cause = informer.last_error or "no answer"
                    causes.append(f"{informer.kind} ({cause} for {informer.staleness():.0f} s)")
        return f"waiting for cache: {', '.join(causes)}" if causes else None
