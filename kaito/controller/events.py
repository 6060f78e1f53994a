"""Kubernetes Events: what the operator tells people in ``kubectl describe``.

``record`` counts and queues, ``run`` sends. The same thing said again is one request (the start of
a series), then counted in memory and written rarely. Nothing here may fail or slow a reconcile.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec
import structlog

from kaito import metrics
from kaito.api.meta import ObjectMeta, ObjectRef
from kaito.clock import Clock, Timer, rfc3339_micro, time_limit
from kaito.controller.backoff import TokenBucket
from kaito.errors import (
    AlreadyExists,
    KaitoError,
    NotFound,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
)
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()

EventType = Literal["Normal", "Warning"]

QUEUE_LIMIT: Final = 1000
TRIES: Final = 12
RETRY_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 360.0
REFRESH_SECONDS: Final = 1800.0
SWEEP_SECONDS: Final = 60.0
BURST: Final = 25
REFILL_SECONDS: Final = 300.0
COMBINE_FROM: Final = 10
COMBINE_SECONDS: Final = 600.0
TABLE_LIMIT: Final = 4096
COMBINED: Final = "(combined from similar events): "

_SENT: Final = {
    outcome: metrics.EVENTS_SENT.labels(outcome)
    for outcome in ("created", "patched", "dropped_full", "dropped_spam", "failed")
}
_NOTE_BYTES: Final = 1024
_WORD_BYTES: Final = 128
_NAME_BYTES: Final = 253


class _Event(msgspec.Struct, frozen=True):
    """An Event as answered: nothing of it is ever read."""

    metadata: ObjectMeta


EVENTS: Final[Kind[_Event]] = Kind(
    "events.k8s.io", "v1", "Event", "events", True, msgspec.json.Decoder(_Event).decode
)


class _Series:
    """One thing said about one object, and how often."""

    def __init__(self, manifest: dict[str, Any], now: float) -> None:
        self.manifest = manifest
        self.count = 1
        self.observed_at = now  # boot clock
        self.observed_time: str = manifest["eventTime"]
        self.written = 0  # the count that the server knows
        self.written_at = now
        self.is_queued = False
        self.tries = 0  # that failed, since it was last written

    @property
    def body(self) -> dict[str, Any]:
        return {"series": {"count": self.count, "lastObservedTime": self.observed_time}}


class _Similar:
    """Distinct notes of one (object, reason) lately."""

    def __init__(self, now: float) -> None:
        self.notes: set[str] = set()
        self.combined: str | None = None  # the one note that stands for all further ones
        self.since = now


class EventRecorder:
    """Records Events from one loop. ``controller``: reportingController; ``instance``: the pod.

    Everything but the note tells things apart as client-go does; the note does too, until there
    are ten of one object and reason within ten minutes.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        clock: Clock,
        controller: str,
        instance: str,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._clock = clock
        self._controller = controller
        self._instance = _cut(instance, _WORD_BYTES)
        self._uniform = uniform
        self._series: OrderedDict[tuple[object, ...], _Series] = OrderedDict()
        self._similar: OrderedDict[tuple[object, ...], _Similar] = OrderedDict()
        self._buckets: OrderedDict[ObjectRef, TokenBucket] = OrderedDict()
        self._queue: deque[_Series] = deque()
        self._delayed: dict[_Series, Timer] = {}
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._last_ns = 0
        self._timer: Timer | None = None

    def record(
        self, regarding: ObjectRef, type: EventType, reason: str, action: str, note: str
    ) -> None:
        """Tell. Never waits and never raises; what cannot be sent is counted and logged."""
        if not (reason and action and note):
            log.error("event without reason, action or note", object=str(regarding), reason=reason)
            _SENT["failed"].inc()
            return
        note = self._combine(regarding, reason, _cut(note, _NOTE_BYTES))
        key = (type, action, reason, regarding, note)
        now = self._clock.monotonic()
        series = self._series.get(key)
        if series is not None:
            series.count += 1
            series.observed_at = now
            series.observed_time = rfc3339_micro(self._clock.now())
            if series.count == 2:
                self._enqueue(series)
            return
        if not self._bucket(regarding).take():
            _SENT["dropped_spam"].inc()
            return
        series = _Series(self._manifest(regarding, type, reason, action, note), now)
        if self._enqueue(series):
            _remember(self._series, key, series)
            if self._timer is None:
                self._timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)

    async def run(self) -> None:
        """Send, one after another, until cancelled."""
        try:
            while True:
                await self._has_work.wait()
                while self._queue:
                    self._is_idle.clear()
                    series = self._queue.popleft()
                    series.is_queued = False
                    await self._send(series)
                self._has_work.clear()
                self._is_idle.set()
        finally:
            for timer in (self._timer, *self._delayed.values()):
                if timer is not None:
                    timer.cancel()

    async def flush(self, timeout: float) -> None:
        """Try once to send all that is left, counts included, for at most ``timeout`` seconds."""
        for series in tuple(self._delayed):
            self._try_again(series)
        for series in self._series.values():
            if series.count > 1 and series.written < series.count:
                self._enqueue(series)
        try:
            async with time_limit(self._clock, timeout):
                while self._queue or not self._is_idle.is_set():
                    self._is_idle.clear()
                    await self._is_idle.wait()
        except TimeoutError:
            log.debug("flush timed out", seconds=timeout)
        if unsent := len(self._queue) + len(self._delayed):
            log.warning("events not sent", count=unsent)

    def _enqueue(self, series: _Series) -> bool:
        if series.is_queued:
            return True
        if len(self._queue) + len(self._delayed) >= QUEUE_LIMIT:
            _SENT["dropped_full"].inc()
            return False
        self._append(series)
        return True

    def _append(self, series: _Series) -> None:
        series.is_queued = True
        self._queue.append(series)
        self._has_work.set()

    def _combine(self, regarding: ObjectRef, reason: str, note: str) -> str:
        """The note itself, or the one that stands for too many different ones."""
        now = self._clock.monotonic()
        similar = self._similar.get((regarding, reason))
        if similar is None or now - similar.since > COMBINE_SECONDS:
            similar = _Similar(now)
        _remember(self._similar, (regarding, reason), similar)
        if note in similar.notes:
            return note
        if len(similar.notes) + 1 < COMBINE_FROM:
            similar.notes.add(note)
            return note
        similar.since = now
        similar.combined = similar.combined or _cut(COMBINED + note, _NOTE_BYTES)
        return similar.combined

    def _bucket(self, regarding: ObjectRef) -> TokenBucket:
        bucket = self._buckets.get(regarding)
        if bucket is None:
            bucket = TokenBucket(clock=self._clock, rate=1 / REFILL_SECONDS, burst=BURST)
        _remember(self._buckets, regarding, bucket)
        return bucket

    def _manifest(
        self, regarding: ObjectRef, type_: EventType, reason: str, action: str, note: str
    ) -> dict[str, Any]:
        now = self._clock.now()
        self._last_ns = max(self._last_ns + 1, int(now * 1e9))  # two of one moment differ too
        suffix = f".{self._last_ns:x}"
        reference = {
            "apiVersion": regarding.api_version,
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            "uid": regarding.uid,
        }
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "namespace": regarding.namespace or "default",
                "name": regarding.name[: _NAME_BYTES - len(suffix)].rstrip(".-") + suffix,
            },
            "eventTime": rfc3339_micro(now),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "regarding": {name: value for name, value in reference.items() if value},
            "type": type_,
            "reason": _cut(reason, _WORD_BYTES),
            "action": _cut(action, _WORD_BYTES),
            "note": note,
        }

    def _sweep(self) -> None:
        """Write counts that are old or complete, and forget what has gone silent."""
        now = self._clock.monotonic()
        for key, series in list(self._series.items()):
            is_silent = now - series.observed_at >= SILENT_SECONDS
            is_due = is_silent or now - series.written_at >= REFRESH_SECONDS
            if is_due and series.count > 1 and series.written < series.count:
                self._enqueue(series)
            if is_silent:
                del self._series[key]
        self._timer = None
        if self._series:
            self._timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)

    async def _send(self, series: _Series) -> None:
        """Bring the server up to the count; try again later while that may help."""
        try:
            await self._write(series)
        except (TransportError, TooManyRequests, ServerUnavailable) as err:
            series.tries += 1
            if series.tries < TRIES:
                log.debug("event delayed", error=str(err))
                self._delay(series)
                return
            log.warning("event not sent", tries=series.tries, error=str(err))
        except KaitoError as err:
            log.warning("event refused", reason=err.reason, error=str(err))
        else:
            series.tries = 0
            return
        series.tries = 0
        _SENT["failed"].inc()

    def _delay(self, series: _Series) -> None:
        """Its next try. Those behind it do not wait: what fails may be its namespace's trouble."""
        if series.is_queued:  # said again meanwhile: its next try is under way
            return
        series.is_queued = True
        wait = RETRY_SECONDS * (1 + 0.25 * self._uniform())
        self._delayed[series] = self._clock.call_later(wait, lambda: self._try_again(series))

    def _try_again(self, series: _Series) -> None:
        self._delayed.pop(series).cancel()
        self._append(series)

    async def _write(self, series: _Series) -> None:
        if series.written == 0:
            await self._create(series.manifest)
            series.written = 1
        if series.count > 1 and series.written < series.count:
            count, body = series.count, series.body
            metadata = series.manifest["metadata"]
            try:
                await self._client.merge_patch(
                    EVENTS, metadata["namespace"], metadata["name"], body
                )
                _SENT["patched"].inc()
            except NotFound:  # events live for an hour
                await self._create({**series.manifest, **body})
            series.written = count
        series.written_at = self._clock.monotonic()

    async def _create(self, manifest: dict[str, Any]) -> None:
        try:
            await self._client.create(EVENTS, manifest)
        except AlreadyExists:  # an earlier try arrived, its answer did not
            return
        _SENT["created"].inc()


def _remember(table: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Keep the most recently used entries."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > TABLE_LIMIT:
        table.popitem(last=False)


def _cut(text: str, limit: int) -> str:
    """At most so many bytes of UTF-8, never half a character; ``?`` for what is none."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")
