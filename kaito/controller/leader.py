"""Leader election with a thread, a loop and a client of its own.

A stalled main loop then costs no leadership. The main loop hears of winning and losing; every
writer asks ``fence`` last thing before its bytes go out.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from kaito import errors, metrics
from kaito.clock import Clock, time_limit
from kaito.controller.candidacy import DEFAULT_TIMING, Candidacy, Timing
from kaito.kube.client import KubeClient

log = structlog.get_logger()

HEALTH_MARGIN: Final = 20.0
REACTION_SECONDS: Final = 1.0
RELEASE_MARGIN: Final = 5.0


@dataclass(eq=False, kw_only=True)
class Elector:
    """``Candidacy`` in a thread of its own, seen from the main loop.

    ``connect``: makes the client the elector alone uses; called in its thread.
    ``identity``: of this replica; a fresh suffix is added, as a restarted process is another.
    ``on_new_leader``: told of each identity seen in the Lease, in the main loop.
    ``exit_process``: called with 1 when nothing was safe for a second and the main loop has not
    even noticed.

    Raises:
        InvalidSettings: the identity is empty.
    """

    connect: Callable[[], Awaitable[KubeClient]]
    namespace: str
    name: str
    identity: str
    clock: Clock
    timing: Timing = DEFAULT_TIMING
    on_new_leader: Callable[[str], object] = lambda leader: log.info("leader", identity=leader)
    exit_process: Callable[[int], object] = os._exit

    def __post_init__(self) -> None:
        if not self.identity:
            message = "leader election needs an identity: the pod's name or the host's"
            raise errors.InvalidSettings(message)
        self.identity = f"{self.identity}_{uuid.uuid4()}"  # what the Lease shows while it leads
        self._candidacy = Candidacy(
            namespace=self.namespace,
            name=self.name,
            identity=self.identity,
            clock=self.clock,
            timing=self.timing,
            on_won=self._has_won,
            on_lost=self._has_lost,
            on_new_leader=lambda leader: self._tell_main(partial(self.on_new_leader, leader)),
        )
        metrics.LEADER_STATUS.labels(self.name).set_function(lambda: float(self.is_leader))
        self._threads: list[threading.Thread] = []
        self._won, self._over, self._campaign_ended = (asyncio.Event() for _ in range(3))
        self._ending: errors.KaitoError = errors.LeadershipLost("the election ended")
        self._react_by = math.inf  # the main loop must have noticed the loss by then
        self._connecting: asyncio.Task[None] | None = None
        self._released = threading.Event()

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
        if left <= 0:
            metrics.FENCED_WRITES.inc()
            raise errors.NotLeader("this replica may not be the leader any more: nothing was sent")
        return left

    def health(self) -> str | None:
        """None while fine, else why not: leading without having renewed for too long."""
        age = self._candidacy.renewal_age()
        if self.timing.lease + HEALTH_MARGIN < age < math.inf:
            return f"leading, but the Lease was last renewed {age:.0f} s ago"
        return None

    def start(self) -> None:
        """Begin to campaign. Call in the main loop."""
        self._main = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        for name, target in (("elector", self._campaign), ("elector-watchdog", self._watchdog)):
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
            self._threads[-1].start()

    async def acquired(self) -> None:
        """Wait for leadership. For ever, if the election ends before: see ``lost``."""
        await self._won.wait()

    async def lost(self) -> errors.KaitoError:
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
        with suppress(RuntimeError):  # its loop is closed: the election ended by itself
            self._loop.call_soon_threadsafe(self._stop)
        try:
            async with time_limit(self.clock, self.timing.renew_deadline + RELEASE_MARGIN):
                await self._campaign_ended.wait()
        except TimeoutError:
            log.error("election does not end: left behind", identity=self.identity)
            self._threads.clear()
        self._released.set()
        while self._threads:
            self._threads.pop().join()  # at its last step: does not hold the loop

    # In the elector's threads -------------------------------------------------------------------

    def _campaign(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except asyncio.CancelledError:  # by _stop while connecting
            log.debug("election cancelled", identity=self.identity)
        except BaseException as err:
            log.exception("election failed", identity=self.identity)
            # What the connection is refused for says how to end; nothing was led then.
            lost = errors.LeadershipLost(f"the election failed: {err!r}")
            self._ending = err if isinstance(err, errors.KaitoError) else lost
        finally:
            self._candidacy.lose("the election ended")
            self._tell_main(self._over.set)
            self._tell_main(self._campaign_ended.set)

    async def _run(self) -> None:
        if self._candidacy.is_stopping:
            return
        self._connecting = asyncio.current_task()
        client = await self.connect()
        self._connecting = None
        try:
            await self._candidacy.run(client)
        finally:
            await client.close()

    def _stop(self) -> None:
        self._candidacy.stop()
        if self._connecting is not None:
            self._connecting.cancel()  # nothing is held yet, and nothing limits its time

    def _watchdog(self) -> None:
        """Judge by the boot clock when the campaign's own thread, or the main loop, cannot."""
        while not self._released.wait(self.timing.watch):
            self._candidacy.check_deadline()
            if self.clock.monotonic() > self._react_by and not self._over.is_set():
                log.error("main loop did not react to the loss of leadership: ending the process")
                self.exit_process(1)
                return

    def _has_won(self) -> None:
        log.info("became leader", identity=self.identity)
        self._tell_main(self._won.set)

    def _has_lost(self, cause: str, left: float) -> None:
        log.error("leadership lost", cause=cause)
        self._ending = errors.LeadershipLost(f"leadership lost: {cause}")
        # From now, if validity ended in the past: a process that was stopped gets its chance.
        self._react_by = self.clock.monotonic() + left + REACTION_SECONDS
        self._tell_main(self._over.set)

    def _tell_main(self, callback: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the main loop is gone, and with it who would listen
            self._main.call_soon_threadsafe(callback)
