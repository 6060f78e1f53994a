"""Campaigning for one Lease: who may write, and until when.

One loop that reads and writes the Lease and judges by the boot clock alone (facts E1 to E15). No
thread here: ``leader.py`` gives it one.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec
import structlog

from kaito import metrics
from kaito.api.meta import ObjectMeta
from kaito.clock import Clock, rfc3339_micro, time_limit
from kaito.errors import AlreadyExists, ApiError, Conflict, InvalidSettings, KaitoError
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()

JITTER: Final = 1.2
"""Candidates wait ``retry`` and up to so much of it more, so that they do not move in step."""
FENCE_MARGIN: Final = 2.0


class Lease(msgspec.Struct, frozen=True):
    """A Lease whole: what we do not know of it must survive our update (facts E13)."""

    metadata: ObjectMeta
    body: dict[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The election record."""
        return self.body.get("spec") or {}

    @property
    def holder(self) -> str:
        """Identity of the leader, empty when released."""
        return self.spec.get("holderIdentity") or ""


class _Metadata(msgspec.Struct, frozen=True):
    metadata: ObjectMeta


def _decode_lease(raw: bytes) -> Lease:
    return Lease(msgspec.json.decode(raw, type=_Metadata).metadata, msgspec.json.decode(raw))


LEASES: Final[Kind[Lease]] = Kind(
    "coordination.k8s.io", "v1", "Lease", "leases", True, _decode_lease
)


class Candidacy:
    """Campaigns for one Lease until stopped. Belongs to one loop, but for what is marked below.

    ``on_change``: told of each won or lost leadership, with the cause of a loss.
    ``on_new_leader``: told of each identity seen in the Lease, the first included.
    """

    def __init__(
        self,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        lease_seconds: float,
        renew_deadline: float,
        retry: float,
        on_change: Callable[[str | None], None],
        on_new_leader: Callable[[str], None],
        uniform: Callable[[], float] = random.random,
    ) -> None:
        _check_timing(lease_seconds, renew_deadline, retry, identity)
        self.identity = identity
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._renew_deadline = renew_deadline
        self._retry = retry
        self._call_limit = max(1.0, renew_deadline / 2)
        self._on_change = on_change
        self._on_new_leader = on_new_leader
        self._uniform = uniform
        self._lease: Lease | None = None  # as last read or written
        self._observed_at = 0.0
        self._seen_leader: str | None = None
        self._is_remembered = False  # the next renewal needs no read
        self._last_write = ("", 0.0)  # its renewTime, and when its round started
        self._renewed_at: float | None = None  # None: not leading
        self._slow_path = metrics.LEADER_SLOWPATH.labels(name)
        self._lock = threading.Lock()  # over winning and losing: a loss is final
        self._is_lost = False
        self._stopping = False
        self._wake = asyncio.Event()

    # From any thread: single reads of what the loop writes, and under the lock a loss ----------

    @property
    def is_leader(self) -> bool:
        """Leading, as far as this process can tell."""
        return self._renewed_at is not None

    def seconds_left(self) -> float | None:
        """Seconds that writes are still safe, below 0 when no more; None when not leading."""
        renewed_at = self._renewed_at
        if renewed_at is None:
            return None
        return renewed_at + self._lease_seconds - FENCE_MARGIN - self._clock.monotonic()

    def renewal_age(self) -> float | None:
        """Seconds since the last confirmed renewal began; None when not leading."""
        renewed_at = self._renewed_at
        return None if renewed_at is None else self._clock.monotonic() - renewed_at

    def lose(self, cause: str) -> None:
        """Stop leading, for good. Nothing is sent: another may hold the Lease already."""
        with self._lock:
            if self._renewed_at is None:
                return
            self._renewed_at = None
            self._is_lost = self._stopping = True
        self._on_change(cause)

    # In the elector's loop ------------------------------------------------------------------------

    def stop(self) -> None:
        """End ``run``; it releases the Lease if it is held."""
        self._stopping = True
        self._wake.set()

    async def run(self, client: KubeClient) -> None:
        """Campaign, then renew; return after a loss or ``stop()``."""
        async with asyncio.TaskGroup() as group:
            hint = group.create_task(self._hint(client))
            while not self._stopping and not self._is_overdue():
                started = self._clock.monotonic()
                await self._round(client, started)
                if not self._is_overdue():
                    await self._pause(started)
            hint.cancel()
        if self.is_leader:
            await self._release(client)

    async def _round(self, client: KubeClient, started: float) -> None:
        """One try to take or renew. Only ``_hold`` confirms; every failure is told apart here."""
        is_renewal = self.is_leader
        try:
            async with time_limit(self._clock, self._time_for_call(started)):
                await self._take_or_renew(client, started)
        except TimeoutError:
            self._is_remembered = False
            log.warning("lease call timed out", lease=self._name)
        except KaitoError as err:
            self._is_remembered = False
            log.warning("lease call failed", lease=self._name, error=str(err))
        finally:
            if is_renewal:
                metrics.LEADER_RENEW_SECONDS.observe(self._clock.monotonic() - started)

    def _is_overdue(self) -> bool:
        """The deadline of renewal, judged before each call too: the machine may have slept."""
        age = self.renewal_age()
        if age is None or age < self._renew_deadline:
            return False
        self.lose(f"not renewed for {age:.1f} s")
        return True

    def _time_for_call(self, started: float) -> float:
        if self._renewed_at is None:
            return self._call_limit
        left = self._renewed_at + self._renew_deadline - started
        return max(0.0, min(self._call_limit, left))

    async def _take_or_renew(self, client: KubeClient, started: float) -> None:
        if self.is_leader and self._lease is not None and self._is_remembered:
            with suppress(ApiError):
                await self._write(client, self._lease, started)
                return
            self._slow_path.inc()
        self._is_remembered = False
        current = await client.get(LEASES, self._namespace, self._name)
        if current is None:
            if self.is_leader:
                self.lose("the Lease was deleted")
            else:
                await self._create(client, started)
            return
        self._observe(current)
        if current.holder == self.identity:
            # Our write arrived, its answer did not (facts W16). Only one of this very round counts
            # from its start: an older one began to expire before.
            if self._last_write == (current.spec.get("renewTime"), started):
                self._hold(current, started)
            else:
                await self._write(client, current, started)
        elif self.is_leader:
            self.lose(f"the Lease is held by {current.holder or 'nobody'}")
        elif not current.holder or self._expires_at() <= self._clock.monotonic():
            with suppress(Conflict):  # another candidate was first
                await self._write(client, current, started)

    async def _create(self, client: KubeClient, started: float) -> None:
        metadata = {"namespace": self._namespace, "name": self._name}
        manifest = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": self._record(transitions=0, acquired=None),
        }
        with suppress(AlreadyExists):  # lost this round
            self._hold(await client.create(LEASES, manifest), started)

    async def _write(self, client: KubeClient, current: Lease, started: float) -> None:
        """PUT over what was read: its resourceVersion admits one winner."""
        is_renewal = current.holder == self.identity
        transitions = current.spec.get("leaseTransitions") or 0
        record = self._record(
            transitions=transitions if is_renewal else transitions + 1,
            acquired=current.spec.get("acquireTime") if is_renewal else None,
        )
        self._last_write = (record["renewTime"], started)
        self._hold(await self._put(client, current, record), started)

    async def _put(self, client: KubeClient, current: Lease, record: Mapping[str, Any]) -> Lease:
        return await client.replace(LEASES, {**current.body, "spec": {**current.spec, **record}})

    def _record(self, *, transitions: int, acquired: str | None) -> dict[str, Any]:
        now = rfc3339_micro(self._clock.now())
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(self._lease_seconds),
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }

    def _hold(self, lease: Lease, started: float) -> None:
        """Confirmed: leading since the call began."""
        was_leading = self.is_leader
        self._is_remembered = True
        self._observe(lease)
        with self._lock:
            if self._is_lost:  # the watchdog's verdict came first
                return
            self._renewed_at = started
        if not was_leading:
            self._on_change(None)

    def _observe(self, lease: Lease) -> None:
        """Expiry counts from when this process saw the record change, by no one's wall clock."""
        if self._lease is None or lease.spec != self._lease.spec:
            self._observed_at = self._clock.monotonic()
        self._lease = lease
        if lease.holder and lease.holder != self._seen_leader:
            self._seen_leader = lease.holder
            self._on_new_leader(lease.holder)

    def _expires_at(self) -> float:
        assert self._lease is not None
        duration = self._lease.spec.get("leaseDurationSeconds") or self._lease_seconds
        return self._observed_at + float(duration)

    async def _pause(self, started: float) -> None:
        """The leader: each ``retry`` from start to start. A candidate: jittered, or at expiry."""
        now = self._clock.monotonic()
        if self._stopping:
            return
        if self.is_leader:
            until = started + self._retry
        else:
            until = now + self._retry * (1 + JITTER * self._uniform())
            if self._lease is not None and self._lease.holder and self._expires_at() > now:
                until = min(until, self._expires_at() + 0.5 * self._uniform())
        with suppress(TimeoutError):
            async with time_limit(self._clock, max(0.0, until - now)):
                await self._wake.wait()
        self._wake.clear()

    async def _hint(self, client: KubeClient) -> None:
        """Wake up when the Lease shows that it is free. A hint only: without it all still works."""
        query = {"fieldSelector": f"metadata.name={self._name}", "timeoutSeconds": "300"}
        while not self.is_leader:
            try:
                async with client.watch(
                    LEASES, namespace=self._namespace, query=query, idle_seconds=310
                ) as lines:
                    async for line in lines:
                        if self.is_leader:
                            return
                        if _shows_free(line):
                            self._wake.set()
            except KaitoError as err:
                log.debug("lease watch failed", lease=self._name, error=str(err))
            except Exception:  # a hint must not cost the election
                log.exception("lease watch crashed", lease=self._name)
            await self._clock.sleep(self._lease_seconds)

    async def _release(self, client: KubeClient) -> None:
        """Give the Lease up: holder empty, one second, transitions kept. It is never deleted."""
        try:
            async with time_limit(self._clock, self._renew_deadline):
                while (
                    current := await client.get(LEASES, self._namespace, self._name)
                ) is not None:
                    if current.holder != self.identity:
                        break
                    now = rfc3339_micro(self._clock.now())
                    empty = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": now}
                    with suppress(Conflict):
                        await self._put(client, current, empty)
                        break
        except (TimeoutError, KaitoError) as err:
            log.warning("lease not released", lease=self._name, error=str(err))
        self._renewed_at = None


def _check_timing(lease: float, renew: float, retry: float, identity: str) -> None:
    """Raises InvalidSettings on timings under which two could lead, or on no identity."""
    if not identity:
        raise InvalidSettings("leader election needs an identity: the pod's name or the host's")
    if min(lease, renew, retry) <= 0 or lease != int(lease):
        raise InvalidSettings(
            f"leader election needs times above 0 and whole seconds of lease, not {lease:g}, "
            f"{renew:g}, {retry:g}"
        )
    if lease <= renew or renew <= JITTER * retry:
        raise InvalidSettings(
            f"leader election needs lease > renew deadline > {JITTER} x retry, not {lease:g}, "
            f"{renew:g}, {retry:g}"
        )


def _shows_free(line: bytes) -> bool:
    """A watch line of a Lease that is deleted or that nobody holds."""
    try:
        event = msgspec.json.decode(line)
        if event["type"] not in ("ADDED", "MODIFIED"):  # BOOKMARK and ERROR are of no Lease
            return bool(event["type"] == "DELETED")
        return not (event["object"].get("spec") or {}).get("holderIdentity")
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return False
