"""Campaigning for one Lease: who may write, and until when.

One loop that reads and writes the Lease and judges by the boot clock alone (facts E1 to E15). No
thread here: ``leader.py`` gives it one.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog

from kaito import errors, metrics
from kaito.api.meta import ObjectMeta, Owned
from kaito.api.views import decode_owned
from kaito.clock import Clock, rfc3339_micro, time_limit
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()
T = TypeVar("T")

JITTER: Final = 1.2
"""Candidates wait ``retry`` and up to so much of it more, so that they do not move in step."""
FENCE_MARGIN: Final = 2.0
NEVER: Final = -math.inf


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that a Lease lasts, within which it must be renewed, and between two tries.

    ``watch``: between two looks of the watchdog over the election.

    Raises:
        InvalidSettings: under these times two could lead, or nobody.
    """

    lease: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0
    watch: float = 0.5

    def __post_init__(self) -> None:
        is_safe = self.lease > self.renew_deadline > JITTER * self.retry > 0
        if not is_safe or self.lease % 1 or self.lease <= self.retry + FENCE_MARGIN:
            raise errors.InvalidSettings(
                f"leader election needs a lease of whole seconds > renew deadline > {JITTER:g} x "
                f"retry > 0, and lease > retry + {FENCE_MARGIN:g} s: not {self}"
            )


DEFAULT_TIMING: Final = Timing()


LEASES: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases", True, decode_owned)
"""Read whole: what we do not know of a Lease must survive our update (facts E13)."""


def record_of(lease: Owned) -> Mapping[str, Any]:
    """The election record: ``spec``."""
    return cast(Mapping[str, Any], lease.body.get("spec") or {})


def holder_of(lease: Owned) -> str:
    """Identity of the leader, empty when released."""
    return record_of(lease).get("holderIdentity") or ""


@dataclass(eq=False, kw_only=True)
class Candidacy:
    """Campaigns for one Lease until stopped. Belongs to one loop, but for what is marked below.

    ``on_won``, ``on_lost``: told of leadership; of a loss with its cause and the seconds for which
    nobody else can lead yet. ``on_new_leader``: told of each identity seen in the Lease, the first
    included. ``is_stopping``: told to end; also by a loss.
    """

    namespace: str
    name: str
    identity: str
    clock: Clock
    timing: Timing
    on_won: Callable[[], object]
    on_lost: Callable[[str, float], object]
    on_new_leader: Callable[[str], object]
    uniform: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        self.is_stopping = False
        self._client: KubeClient
        self._lease: Owned | None = None  # as last read or written
        self._expires_at = NEVER  # what is in it; in the past when nobody holds it
        self._remembered: Owned | None = None  # the next renewal needs no read
        self._last_write = ("", NEVER)  # its renewTime, and when its call began
        self._renewed_at = NEVER  # while not leading
        self._lock = threading.Lock()  # over winning and losing: a loss is final
        self._is_lost = False
        self._wake = asyncio.Event()
        self._slow_path = metrics.LEADER_SLOWPATH.labels(self.name)

    # From any thread: single reads of what the loop writes, and under the lock a loss ----------

    @property
    def is_leader(self) -> bool:
        """Leading, as far as this process can tell."""
        return self._renewed_at > NEVER

    def renewal_age(self) -> float:
        """Seconds since the last confirmed renewal began; infinite when not leading."""
        return self.clock.monotonic() - self._renewed_at

    def seconds_left(self) -> float:
        """Seconds that writes are still safe; below 0: no more, or not leading."""
        return self.timing.lease - FENCE_MARGIN - self.renewal_age()

    def check_deadline(self) -> None:
        """Lose leadership if it was not renewed in time."""
        age = self.renewal_age()
        if self.timing.renew_deadline <= age < math.inf:
            self.lose(f"not renewed for {age:.1f} s", self.timing.lease - FENCE_MARGIN - age)

    def lose(self, cause: str, left: float = 0.0) -> None:
        """Stop leading, for good. Nothing is sent: another may hold the Lease already."""
        with self._lock:
            if not self.is_leader:
                return
            self._renewed_at = NEVER
            self._is_lost = self.is_stopping = True
        self.on_lost(cause, max(0.0, left))

    # In the elector's loop ------------------------------------------------------------------------

    def stop(self) -> None:
        """End ``run``; it releases the Lease if it is held."""
        self.is_stopping = True
        self._wake.set()

    async def run(self, client: KubeClient) -> None:
        """Campaign, then renew; return after a loss or ``stop()``."""
        self._client = client
        async with asyncio.TaskGroup() as group:
            hint = group.create_task(self._hint())
            while not self.is_stopping:
                started = self.clock.monotonic()
                await self._round(started)
                self.check_deadline()
                await self._pause(started)
                self.check_deadline()  # before each call: the machine may have slept
            hint.cancel()
        if self.is_leader:
            await self._release()

    async def _round(self, started: float) -> None:
        """One try to take or renew. Only ``_hold`` confirms; every failure is told apart here."""
        is_renewal = self.is_leader
        try:
            await self._take_or_renew(started)
        except (errors.KaitoError, TimeoutError) as err:
            log.warning("lease call failed", lease=self.name, error=str(err) or "timed out")
        finally:
            if is_renewal:
                metrics.LEADER_RENEW_SECONDS.observe(self.clock.monotonic() - started)

    async def _take_or_renew(self, started: float) -> None:
        remembered, self._remembered = self._remembered, None
        if self.is_leader:
            if remembered is not None:
                with suppress(errors.ApiError):
                    await self._write(remembered)
                    return
            self._slow_path.inc()
        current = await self._call(self._client.get(LEASES, self.namespace, self.name))
        current = current or _absent(self.namespace, self.name)
        self._observe(current)
        if holder_of(current) == self.identity:
            # Our write arrived, its answer did not (facts W16). One of an earlier round began to
            # expire before: it is written anew.
            renew_time, wrote_at = self._last_write
            if record_of(current).get("renewTime") == renew_time and wrote_at >= started:
                self._hold(current, wrote_at)
            else:
                await self._write(current)
        elif self.is_leader:
            self.lose(f"the Lease is held by {holder_of(current) or 'nobody'}")
        elif self._expires_at <= self.clock.monotonic():
            with suppress(errors.AlreadyExists, errors.Conflict):  # another candidate was first
                await self._write(current)

    async def _call(self, call: Awaitable[T]) -> T:
        """One that hangs does not use up the deadline of renewal, nor outlast it."""
        limit = max(1.0, self.timing.renew_deadline / 2)
        if self.is_leader:
            limit = min(limit, self.timing.renew_deadline - self.renewal_age())
        async with time_limit(self.clock, max(0.0, limit)):
            return await call

    async def _write(self, current: Owned) -> None:
        """POST, or PUT over what was read: its resourceVersion admits one winner."""
        started, now = self.clock.monotonic(), rfc3339_micro(self.clock.now())
        is_new = not current.metadata.resource_version
        record = {"leaseDurationSeconds": int(self.timing.lease), "renewTime": now}
        if holder_of(current) != self.identity:
            nth = 0 if is_new else (record_of(current).get("leaseTransitions") or 0) + 1
            record |= {"holderIdentity": self.identity, "acquireTime": now, "leaseTransitions": nth}
        self._last_write = (now, started)
        send = self._client.create if is_new else self._client.replace
        self._hold(await self._call(send(LEASES, _with(current, record))), started)

    def _hold(self, lease: Owned, started: float) -> None:
        """Confirmed: leading since the call began."""
        was_leading = self.is_leader
        self._remembered = lease
        self._observe(lease)
        with self._lock:
            if self._is_lost:  # the watchdog's verdict came first
                return
            self._renewed_at = started
        if not was_leading:
            self.on_won()

    def _observe(self, lease: Owned) -> None:
        """Expiry counts from when this process saw the record change, by no one's wall clock."""
        before, self._lease = self._lease, lease
        record, holder = record_of(lease), holder_of(lease)
        if before is None or record_of(before) != record:
            duration = float(record.get("leaseDurationSeconds") or self.timing.lease)
            self._expires_at = self.clock.monotonic() + duration if holder else NEVER
        if holder and (before is None or holder != holder_of(before)):
            self.on_new_leader(holder)

    async def _pause(self, started: float) -> None:
        """The leader: each ``retry`` from start to start. A candidate: jittered, or at expiry."""
        now = self.clock.monotonic()
        if self.is_stopping:
            return
        if self.is_leader:
            until = started + self.timing.retry
        else:
            until = now + self.timing.retry * (1 + JITTER * self.uniform())
            if self._expires_at > now:
                until = min(until, self._expires_at + 0.5 * self.uniform())
        with suppress(TimeoutError):
            async with time_limit(self.clock, max(0.0, until - now)):
                await self._wake.wait()
        self._wake.clear()

    async def _hint(self) -> None:
        """Wake up when the Lease shows that it is free. A hint only: without it all still works."""
        query = {"fieldSelector": f"metadata.name={self.name}", "timeoutSeconds": "300"}
        while not self.is_leader:
            pause = self.timing.lease
            try:
                async with self._client.watch(
                    LEASES, namespace=self.namespace, query=query, idle_seconds=310
                ) as lines:
                    async for line in lines:
                        if self.is_leader:
                            return
                        if _shows_free(line):
                            self._wake.set()
                pause = self.timing.retry
            except errors.KaitoError as err:
                log.debug("lease watch failed", lease=self.name, error=str(err))
            except Exception:  # a hint must not cost the election
                log.exception("lease watch crashed", lease=self.name)
            await self.clock.sleep(pause)

    async def _release(self) -> None:
        """Give the Lease up: holder empty, one second, transitions kept. It is never deleted."""
        self._renewed_at = NEVER  # first: another may lead before the answer is here
        try:
            async with time_limit(self.clock, self.timing.renew_deadline):
                while current := await self._client.get(LEASES, self.namespace, self.name):
                    if holder_of(current) != self.identity:
                        return
                    now = rfc3339_micro(self.clock.now())
                    empty = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now}
                    with suppress(errors.Conflict):
                        await self._client.replace(LEASES, _with(current, empty))
                        return
        except (errors.KaitoError, TimeoutError) as err:
            log.warning("lease not released", lease=self.name, error=str(err) or "timed out")


def _absent(namespace: str, name: str) -> Owned:
    metadata = {"namespace": namespace, "name": name}
    head = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata}
    return Owned(ObjectMeta(), head)


def _with(lease: Owned, record: Mapping[str, Any]) -> dict[str, Any]:
    return {**lease.body, "spec": {**record_of(lease), **record}}


def _shows_free(line: bytes) -> bool:
    """A watch line of a Lease that is deleted or that nobody holds."""
    try:
        event = msgspec.json.decode(line)
        if event["type"] not in ("ADDED", "MODIFIED"):  # BOOKMARK and ERROR are of no Lease
            return bool(event["type"] == "DELETED")
        return not (event["object"].get("spec") or {}).get("holderIdentity")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return False
