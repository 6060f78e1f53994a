"""Leader election with a thread, a loop and a client of its own.

A stalled main loop then costs no leadership. The main loop hears of winning and losing; every
writer asks ``fence`` last thing before its bytes go out.
"""

from __future__ import annotations

import asyncio
import os
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from kaito import metrics
from kaito.clock import Clock, time_limit
from kaito.controller.candidacy import FENCE_MARGIN, Candidacy
from kaito.errors import KaitoError, LeadershipLost, NotLeader
from kaito.kube.client import KubeClient

log = structlog.get_logger()

HEALTH_MARGIN: Final = 20.0
WATCHDOG_SECONDS: Final = 0.5
REACTION_SECONDS: Final = 1.0
RELEASE_MARGIN: Final = 5.0


class Elector:
    """``Candidacy`` in a thread of its own, seen from the main loop.

    ``connect``: makes the client the elector alone uses; called in its thread.
    ``identity``: of this replica; a fresh suffix is added, as a restarted process is another.
    ``watchdog_seconds``: how often the watchdog looks.
    ``exit_process``: called with 1 when writes have not been safe for a second and the main loop
    has not even noticed.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Awaitable[KubeClient]],
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        lease_seconds: float = 15.0,
        renew_deadline: float = 10.0,
        retry: float = 2.0,
        watchdog_seconds: float = WATCHDOG_SECONDS,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._watchdog_seconds = watchdog_seconds
        self._exit_process = exit_process
        self._health_limit = lease_seconds + HEALTH_MARGIN
        self._release_limit = renew_deadline + RELEASE_MARGIN
        self._candidacy = Candidacy(
            namespace=namespace,
            name=name,
            identity=f"{identity}_{uuid.uuid4()}" if identity else "",
            clock=clock,
            lease_seconds=lease_seconds,
            renew_deadline=renew_deadline,
            retry=retry,
            on_change=self._changed,
            on_new_leader=lambda leader: log.info("leader seen", lease=name, leader=leader),
        )
        self._status = metrics.LEADER_STATUS.labels(name)
        self._status.set(0)
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._is_released = False
        self._connecting: asyncio.Task[None] | None = None
        self._react_by: float | None = None  # the main loop must have noticed the loss by then
        self._ending: KaitoError = LeadershipLost("the election ended")

    @property
    def identity(self) -> str:
        """What the Lease shows while this process leads."""
        return self._candidacy.identity

    @property
    def is_leader(self) -> bool:
        """Leading, as far as this process can tell. Before a write ask ``fence``."""
        return self._candidacy.is_leader

    def fence(self) -> float:
        """Seconds that writes under this leadership are still safe. From any thread.

        Raises:
            NotLeader: not leading, or the lease may have run out.
        """
        left = self._candidacy.seconds_left()
        if left is None or left <= 0:
            metrics.FENCED_WRITES.inc()
            raise NotLeader("this replica may not be the leader any more: nothing was sent")
        return left

    def health(self) -> str | None:
        """None while fine, else why not: leading without having renewed for too long."""
        age = self._candidacy.renewal_age()
        if age is None or age <= self._health_limit:
            return None
        return f"leading, but the Lease was last renewed {age:.0f} s ago"

    def start(self) -> None:
        """Begin to campaign. Call in the main loop."""
        self._main = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._won = asyncio.Event()
        self._over = asyncio.Event()
        self._campaign_ended = asyncio.Event()
        for name, target in (("elector", self._campaign), ("elector-watchdog", self._watchdog)):
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    async def acquired(self) -> None:
        """Wait for leadership. For ever, if the election ends before: see ``lost``."""
        await self._won.wait()

    async def lost(self) -> KaitoError:
        """Wait until leadership is lost or the election ended; return the error to end with."""
        await self._over.wait()
        return self._ending

    async def release(self) -> None:
        """Stop, giving the Lease up if it is held. Call when all that was guarded has ended.

        Takes at most 5 s longer than the renew deadline; what hangs by then is left to the
        process's end.
        """
        if not self._threads:
            return
        self._is_released = True
        with suppress(RuntimeError):  # its loop is closed: the election ended by itself
            self._loop.call_soon_threadsafe(self._stop)
        patience: float | None = None  # at its last step: does not hold the loop
        try:
            async with time_limit(self._clock, self._release_limit):
                await self._campaign_ended.wait()
        except TimeoutError:
            log.error("election does not end: left behind", identity=self.identity)
            patience = 0.0
        self._ended.set()
        while self._threads:
            self._threads.pop().join(patience)

    # In the elector's threads -------------------------------------------------------------------

    def _campaign(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except asyncio.CancelledError:  # by _stop while connecting, when there is nothing to lose
            log.debug("election cancelled", identity=self.identity)
            self._candidacy.lose("the election was cancelled")
        except BaseException as err:
            log.exception("election failed", identity=self.identity)
            cause = f"the election failed: {err!r}"
            # What the connection is refused for says how to end; nothing was led then.
            self._ending = err if isinstance(err, KaitoError) else LeadershipLost(cause)
            self._candidacy.lose(cause)
        finally:
            self._status.set(0)
            self._tell_main(self._over.set)
            self._tell_main(self._campaign_ended.set)

    def _stop(self) -> None:
        self._candidacy.stop()
        if self._connecting is not None:
            self._connecting.cancel()  # nothing is held yet, and nothing limits its time

    async def _run(self) -> None:
        if self._is_released:
            return
        self._connecting = asyncio.current_task()
        client = await self._connect()
        self._connecting = None
        try:
            await self._candidacy.run(client)
        finally:
            await client.close()

    def _watchdog(self) -> None:
        """Judge by the boot clock when the campaign's own thread, or the main loop, cannot."""
        while not self._ended.wait(self._watchdog_seconds):
            left = self._candidacy.seconds_left()
            if left is not None and left <= 0:
                self._candidacy.lose("the lease ran out while this process stood still")
            react_by = self._react_by
            if react_by is not None and self._clock.monotonic() > react_by:
                log.error("main loop did not react to the loss of leadership: ending the process")
                self._exit_process(1)
                return

    def _changed(self, cause: str | None) -> None:
        if cause is None:
            self._status.set(1)
            log.info("became leader", identity=self.identity)
            self._tell_main(self._won.set)
            return
        self._status.set(0)
        log.error("leadership lost", cause=cause)
        self._ending = LeadershipLost(f"leadership lost: {cause}")
        # Counted from now: a process that was stopped for long gets its chance to end in order.
        self._react_by = self._clock.monotonic() + FENCE_MARGIN + REACTION_SECONDS
        self._tell_main(self._react)

    def _react(self) -> None:
        self._react_by = None
        self._over.set()

    def _tell_main(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the main loop is gone, and with it who would listen
            self._main.call_soon_threadsafe(callback)
