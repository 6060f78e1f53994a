"""Kubernetes Events: what the operator tells people in ``kubectl describe``.

``record`` counts and queues, ``run`` sends. The same thing said again is one request (the start of
a series), then counted in memory and written rarely. Nothing here may fail or slow a reconcile.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Literal

import structlog

from kaito import errors, metrics
from kaito.api.meta import ObjectRef
from kaito.api.views import decode_owned
from kaito.clock import Clock, Timer, rfc3339_micro, time_limit
from kaito.controller.backoff import TokenBucket
from kaito.controller.workqueue import Shutdown, WorkQueue
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

_OUTCOMES: Final = {
    outcome: metrics.EVENTS_SENT.labels(outcome)
    for outcome in ("created", "patched", "dropped_full", "dropped_spam", "failed")
}
_MAY_PASS: Final = (errors.TransportError, errors.TooManyRequests, errors.ServerUnavailable)
_REFERENCE: Final = ("apiVersion", "kind", "namespace", "name", "uid")
_NOTE_BYTES: Final = 1024
_WORD_BYTES: Final = 128
_NAME_BYTES: Final = 253


EVENTS: Final = Kind("events.k8s.io", "v1", "Event", "events", True, decode_owned)


class _Series:
    """One thing said about one object, and how often."""

    def __init__(self, manifest: dict[str, Any], now: float) -> None:
        self.manifest = manifest
        self.count = 1
        self.observed_at = now  # boot clock
        self.observed_time: str = manifest["eventTime"]
        self.written = 0  # the count that the server knows
        self.written_at = now
        self.tries = 0  # that failed, since it was last written


@dataclass(eq=False)
class EventRecorder:
    """Records Events from one loop. ``controller``: reportingController; ``instance``: the pod.

    Everything but the note tells things apart as client-go does; the note does too, until there
    are ten of one object and reason within ten minutes.

    Raises:
        InvalidSettings: controller or instance is empty, which the server refuses.
    """

    client: KubeClient
    _: KW_ONLY
    clock: Clock
    controller: str
    instance: str
    uniform: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if not (self.controller and self.instance):
            raise errors.InvalidSettings("events need a reporting controller and instance")
        self._series: OrderedDict[tuple[object, ...], _Series] = OrderedDict()
        self._notes: OrderedDict[tuple[object, ...], tuple[float, tuple[str, ...]]] = OrderedDict()
        self._buckets: OrderedDict[ObjectRef, TokenBucket] = OrderedDict()
        self._queue: WorkQueue[_Series] = WorkQueue(clock=self.clock)
        self._unsent: set[_Series] = set()  # queued, being sent, or waiting for their next try
        self._ended = asyncio.Event()
        self._last_ns = 0
        self._timer: Timer | None = None

    def record(
        self,
        regarding: ObjectRef,
        type: EventType,
        reason: str,
        action: str,
        note: str,
        *,
        related: ObjectRef | None = None,
    ) -> None:
        """Tell. Never waits and never raises; what cannot be sent is counted and logged."""
        if not (reason and action and type in ("Normal", "Warning")):
            log.error("event that would be refused", object=str(regarding), reason=reason)
            _OUTCOMES["failed"].inc()
            return
        note = self._combine(regarding, reason, _cut(note, _NOTE_BYTES))
        key = (type, action, reason, regarding, related, note)
        now = self.clock.monotonic()
        series = self._series.get(key)
        if series is None:
            bucket = self._buckets.get(regarding)
            bucket = bucket or TokenBucket(clock=self.clock, rate=1 / REFILL_SECONDS, burst=BURST)
            _remember(self._buckets, regarding, bucket)
            if not bucket.take():
                _OUTCOMES["dropped_spam"].inc()
                return
            about = {"regarding": _reference(regarding)}
            if related is not None:
                about["related"] = _reference(related)
            words = {"reason": _cut(reason, _WORD_BYTES), "action": _cut(action, _WORD_BYTES)}
            manifest = self._manifest(regarding) | about | words | {"type": type, "note": note}
            series = _Series(manifest, now)
            if not self._enqueue(series):
                return
        else:
            series.count += 1
            series.observed_at = now
            series.observed_time = rfc3339_micro(self.clock.now())
            if series.count == 2:
                self._enqueue(series)
        _remember(self._series, key, series)
        if self._timer is None and not self._ended.is_set():
            self._timer = self.clock.call_later(SWEEP_SECONDS, self._sweep)

    async def run(self) -> None:
        """Send, one after another, until cancelled or flushed."""
        try:
            while not isinstance(series := await self._queue.get(), Shutdown):
                await self._send(series)
                self._queue.done(series)
        finally:
            self._queue.shutdown()
            if self._timer is not None:
                self._timer.cancel()
            self._ended.set()

    async def flush(self, timeout: float) -> None:
        """Try once to send all that is left, counts included, and end ``run``.

        For at most ``timeout`` seconds; from then on nothing is taken.
        """
        for series in self._series.values():
            if 1 < series.count != series.written:
                self._enqueue(series)
        for series in self._unsent:
            self._queue.add(series)  # now, also what waits for its next try
        self._queue.shutdown(drain=True)
        with suppress(TimeoutError):
            async with time_limit(self.clock, timeout):
                await self._ended.wait()
        if self._unsent:
            log.warning("events not sent", count=len(self._unsent))

    def _enqueue(self, series: _Series) -> bool:
        if series not in self._unsent:  # else its next try is under way
            if len(self._unsent) >= QUEUE_LIMIT:
                _OUTCOMES["dropped_full"].inc()
                return False
            self._unsent.add(series)
            self._queue.add(series)
        return True

    def _combine(self, regarding: ObjectRef, reason: str, note: str) -> str:
        """The note itself, or the one that stands for too many different ones."""
        now = self.clock.monotonic()
        since, notes = self._notes.get((regarding, reason), (now, ()))
        if now - since > COMBINE_SECONDS:
            since, notes = now, ()
        if note not in notes and len(notes) < COMBINE_FROM:
            stands_for_more = len(notes) == COMBINE_FROM - 1
            notes += (_cut(COMBINED + note, _NOTE_BYTES) if stands_for_more else note,)
        if note not in notes:  # its last one stands for it, for as long as there are more
            since, note = now, notes[-1]
        _remember(self._notes, (regarding, reason), (since, notes))
        return note

    def _manifest(self, regarding: ObjectRef) -> dict[str, Any]:
        now = self.clock.now()
        self._last_ns = max(self._last_ns + 1, int(now * 1e9))  # two of one moment differ too
        suffix = f".{self._last_ns:x}"
        name = regarding.name[: _NAME_BYTES - len(suffix)].rstrip(".-") + suffix
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"namespace": regarding.namespace or "default", "name": name},
            "eventTime": rfc3339_micro(now),
            "reportingController": self.controller,
            "reportingInstance": _cut(self.instance, _WORD_BYTES),
        }

    def _sweep(self) -> None:
        """Write counts that are old or complete, and forget what has gone silent."""
        now = self.clock.monotonic()
        for key, series in list(self._series.items()):
            is_silent = now - series.observed_at >= SILENT_SECONDS
            is_due = is_silent or now - series.written_at >= REFRESH_SECONDS
            if is_due and 1 < series.count != series.written:
                self._enqueue(series)
            if is_silent:
                del self._series[key]
        self._timer = None
        if self._series:
            self._timer = self.clock.call_later(SWEEP_SECONDS, self._sweep)

    async def _send(self, series: _Series) -> None:
        """Bring the server up to the count; try again later while that may help."""
        try:
            await self._write(series)
        except errors.KaitoError as err:
            series.tries += 1
            if isinstance(err, _MAY_PASS) and series.tries < TRIES:
                log.debug("event delayed", error=str(err))
                # Those behind it do not wait: what fails may be its namespace's trouble.
                self._queue.add_after(series, RETRY_SECONDS * (1 + 0.25 * self.uniform()))
                return
            log.warning("event not sent", tries=series.tries, reason=err.reason, error=str(err))
            _OUTCOMES["failed"].inc()
        series.tries = 0
        self._unsent.discard(series)

    async def _write(self, series: _Series) -> None:
        if series.written == 0:
            await self._create(series.manifest)
            series.written = 1
        if series.written < (count := series.count):
            name = series.manifest["metadata"]
            body = {"series": {"count": count, "lastObservedTime": series.observed_time}}
            try:
                await self.client.merge_patch(EVENTS, name["namespace"], name["name"], body)
                _OUTCOMES["patched"].inc()
            except errors.NotFound:  # events live for an hour
                await self._create(series.manifest | body)
            series.written = count
        series.written_at = self.clock.monotonic()

    async def _create(self, manifest: Mapping[str, Any]) -> None:
        with suppress(errors.AlreadyExists):  # an earlier try arrived, its answer did not
            await self.client.create(EVENTS, manifest)
            _OUTCOMES["created"].inc()


def _reference(to: ObjectRef) -> dict[str, str]:
    values = (to.api_version, to.kind, to.namespace, to.name, to.uid)
    return {name: value for name, value in zip(_REFERENCE, values, strict=True) if value}


def _remember(table: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Keep the most recently used entries."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > TABLE_LIMIT:
        table.popitem(last=False)


def _cut(text: str, limit: int) -> str:
    """At most so many bytes of UTF-8, never half a character; ``?`` for what is none."""
    return text.encode(errors="replace")[:limit].decode(errors="ignore")
