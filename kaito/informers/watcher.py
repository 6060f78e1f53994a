"""List and watch of one kind: carries out what ``Course`` asks for.

Bytes come from the client, objects go to the sink in the order they came. No handlers, indexes or
readers are known here. A watcher never ends by itself (facts R22), but for a field selector that
the server does not know (R30).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

import structlog

from kaito import errors, metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock, Timer
from kaito.informers import course
from kaito.informers.course import Course, List, State, Stream, Watch
from kaito.informers.decoder import OBJECT_EVENTS, BadLine, Decoder
from kaito.informers.store import is_at_least
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)
T_contra = TypeVar("T_contra", bound=ApiObject, contravariant=True)

PAGES_FROM_CACHE: Final = (1, 34)
BATCH_SECONDS: Final = 0.004
MARKER: Final = "k8s.io/initial-events-end"
LOOK_SECONDS: Final = 10.0
STREAM_IDLE_SECONDS: Final = 30.0
BOOKMARK_IDLE_SECONDS: Final = 90.0
GRACE_SECONDS: Final = 10.0


class Sink(Protocol[T_contra]):
    """Where a watcher puts what it saw, in the watch's own turn."""

    @property
    def resource_version(self) -> str:
        """How far the cache is; the next watch starts here."""
        ...

    def apply(self, event: str, obj: T_contra) -> None:
        """One ADDED, MODIFIED or DELETED."""
        ...

    def drop(self, key: Key, resource_version: str) -> None:
        """One that cannot be read: whatever the cache has under the key is not so any more."""
        ...

    def bookmark(self, resource_version: str) -> None:
        """No object changed up to here."""
        ...

    async def replace(self, objects: Mapping[Key, T_contra], resource_version: str) -> None:
        """A complete list. Waits until all were told of it; nothing else comes meanwhile."""
        ...

    async def not_served(self) -> None:
        """The kind is gone with all its objects. Waits as ``replace`` does."""
        ...


_RESTART_REASONS: Final = {
    errors.Expired: "expired",
    errors.TooManyRequests: "throttled",
    errors.TransportError: "cut",
    errors.LineTooLong: "line_too_long",
    errors.Unauthorized: "unauthorized",
    errors.Forbidden: "forbidden",
    errors.KindNotServed: "not_served",
    BadLine: "bad_data",
}


class _FellSilent(Exception):
    """A stream's idle limit has passed. Not TimeoutError, which anything inside may raise."""


class Watcher(Generic[T]):
    """Keeps a sink in step with one kind on the server.

    ``state``, ``last_error`` (None when all is well), ``is_served``, ``last_byte`` (the clock's
    time of it) and ``idle_limit`` (seconds of silence that end a watch) are for readiness and
    metrics. ``min_watch_seconds``: a watch is asked to last so long, up to twice that; less than
    300 counts as 300.
    """

    def __init__(
        self,
        client: KubeClient,
        kind: Kind[T],
        sink: Sink[T],
        *,
        clock: Clock,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
        min_watch_seconds: float = course.MIN_WATCH_SECONDS,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.state = State.STARTING
        self.last_error: str | None = None
        self.is_served = True
        self.last_byte = clock.monotonic()
        self.idle_limit = BOOKMARK_IDLE_SECONDS
        self._kind = kind
        self._sink = sink
        self._clock = clock
        self._log = log.bind(kind=str(kind))
        self._server_version = client.server_version
        self._list_page = partial(
            client.list_page, kind, namespace=namespace, metadata_only=metadata_only
        )
        self._open = partial(client.watch, kind, namespace=namespace, metadata_only=metadata_only)
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._selectors = {name: value for name, value in selectors.items() if value}
        self._min_watch_seconds = max(course.MIN_WATCH_SECONDS, min_watch_seconds)
        self._chance = chance
        self._course = Course(chance=chance)
        self._decoder = Decoder(kind, clock=clock, metadata_only=metadata_only)
        self._initial: dict[Key, T] = {}  # of a list that is not complete yet
        self._list_began = 0.0
        self._has_lines = self._has_progressed = self._has_bookmarks = False
        self._knows_server = False
        self._labels = (kind.resource, "metadata" if metadata_only else "full")

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            InvalidRequest: the server refuses the field selector.
            RuntimeError: something inside was cancelled, as nobody cancelled this.
        """
        task = asyncio.current_task()
        try:
            while True:
                if not self._course.can_stream and not self._knows_server:
                    await self._learn_server()
                ask = self._course.next(self._sink.resource_version)
                if isinstance(ask, course.Pause):
                    self._initial = {}
                    self._enter(ask.state, self.last_error or "the watch ended too soon")
                    await self._clock.sleep(ask.seconds)
                else:
                    await self._carry_out(ask)
        except asyncio.CancelledError as err:
            if task is None or task.cancelling():
                raise
            # A TaskGroup would take it for a quiet end, and the cache would stand still (facts P4).
            raise RuntimeError(f"the watch of {self._kind} was cancelled from inside") from err
        finally:
            self._enter(State.STOPPED, "stopped")

    async def _learn_server(self) -> None:
        """Which first list suits the server; asked once, and only when lists are needed (R7)."""
        self._knows_server = True
        with suppress(errors.ApiError):  # the list that suits an old one is right for any
            if await self._server_version() >= PAGES_FROM_CACHE:
                self._course.first_version = ""

    async def _carry_out(self, ask: course.Request) -> None:
        try:
            if isinstance(ask, List):
                await self._list(ask)
            else:
                await self._watch(ask)
        except (errors.ApiError, BadLine) as err:
            self._refuse_selector(ask, err)
            self._note(err)
            if not isinstance(ask, List):
                self._count_restart(_RESTART_REASONS.get(type(err), "error"))
            now = self._clock.monotonic()
            if isinstance(err, BadLine):
                self._course.spoiled(now)
            else:
                self._course.failed(ask, err, now)
            if isinstance(err, errors.KindNotServed):
                self.is_served = False
                await self._sink.not_served()

    # Lists --------------------------------------------------------------------------------------

    async def _list(self, ask: List) -> None:
        if not ask.continue_token:
            self._begin_list(State.LISTING)
        page = await self._list_page(query=course.query(ask) | self._selectors)
        self.last_byte = self._clock.monotonic()
        await self._take_page(page.items)
        if page.continue_token:
            self._course.paged(ask, page.continue_token)
        else:
            await self._become_current(ask.resource_version, page.resource_version)

    async def _take_page(self, items: Sequence[bytes]) -> None:
        began = self._clock.monotonic()
        for raw in items:
            obj = self._decoder.decode(raw)
            if obj is not None:
                self._initial[obj.metadata.key] = obj
            if self._clock.monotonic() - began >= BATCH_SECONDS:
                await asyncio.sleep(0)
                began = self._clock.monotonic()
        self._decoder.count_seconds()

    def _begin_list(self, state: State) -> None:
        self._enter(state, self._course.list_reason)
        self._initial = {}
        self._list_began = self._clock.monotonic()
        metrics.INFORMER_LISTS.labels(*self._labels, self._course.list_reason).inc()

    async def _become_current(self, asked: str, version: str) -> None:
        """Swap the complete list in. One that is older than what we showed is refused (R8)."""
        if version in ("", "0"):
            raise errors.ApiError(f"the list of {self._kind} came without a resourceVersion")
        if asked not in ("", "0") and asked.isdecimal() and not is_at_least(version, asked):
            raise errors.ResourceVersionTooLarge(
                f"the list of {self._kind} is at {version}, the cache was at {asked} already"
            )
        objects, self._initial = self._initial, {}
        await self._sink.replace(objects, version)
        self._course.synced()
        self.is_served = True
        self.last_error = None
        seconds = self._clock.monotonic() - self._list_began
        metrics.INFORMER_LIST_SECONDS.labels(*self._labels).observe(seconds)
        self._enter(State.WATCHING, "list complete")

    # Streams and watches ------------------------------------------------------------------------

    async def _watch(self, ask: Stream | Watch) -> None:
        if isinstance(ask, Stream):
            self._begin_list(State.STREAMING)
        else:
            self._enter(State.WATCHING, "pause over")
        seconds = int(self._min_watch_seconds * (1 + self._chance()))
        began = self._clock.monotonic()
        self._has_lines = self._has_progressed = self._has_bookmarks = False
        try:
            async with self._open(
                query=course.query(ask, seconds) | self._selectors,
                idle_seconds=seconds + 2 * GRACE_SECONDS,  # longer: our own limit is to tell
            ) as lines:
                self.last_byte = self._clock.monotonic()
                async with self._idle_limit(seconds + GRACE_SECONDS):
                    await self._pump(ask, lines)
        except _FellSilent:
            self._count_restart("idle")
            self._course.fell_silent(was_silent=not self._has_lines)
        else:
            self._count_restart("timeout")
            now = self._clock.monotonic()
            self._course.ended(seconds=now - began, was_silent=not self._has_lines, now=now)
        finally:
            self._decoder.count_seconds()

    @asynccontextmanager
    async def _idle_limit(self, seconds: float) -> AsyncIterator[None]:
        """Ends what is inside once the stream is silent for too long. One timer, none per line.

        For what comes after the answer's head; how long that may take is the transport's to say.
        """
        timer: Timer | None = None

        def look() -> None:
            nonlocal timer
            quiet = self._clock.monotonic() - self.last_byte
            if not self._course.is_current:
                limit = STREAM_IDLE_SECONDS
                if quiet >= LOOK_SECONDS:
                    self._log.warning("no events in initial stream", seconds=quiet)
            else:
                # Some kinds (Events) send no periodic bookmarks, so silence proves nothing there.
                limit = BOOKMARK_IDLE_SECONDS if self._has_bookmarks else seconds
                self.idle_limit = limit
            if quiet >= limit:
                scope.reschedule(0.0)
            else:
                timer = self._clock.call_later(min(LOOK_SECONDS, limit - quiet), look)

        try:
            async with asyncio.timeout(None) as scope:
                look()
                yield
        except TimeoutError as err:
            if scope.expired():
                raise _FellSilent from err
            raise
        finally:
            if timer is not None:
                timer.cancel()

    async def _pump(self, ask: Stream | Watch, lines: AsyncIterator[bytes]) -> None:
        """Line after line, giving the loop a turn whenever a run of them has taken 4 ms.

        A run ends by itself when no line was waiting: then the loop has turned, which a callback
        left with it tells. So a lone event costs no extra turn and a flood starves no one.
        """
        call_soon = asyncio.get_running_loop().call_soon
        monotonic, decoder = self._clock.monotonic, self._decoder
        has_turned = True
        began = 0.0

        def turn() -> None:
            nonlocal has_turned
            has_turned = True

        async for line in lines:
            if has_turned:
                has_turned = False
                call_soon(turn)
                decoder.count_seconds()
                began = monotonic()
            was_current = self._course.is_current
            event, raw = decoder.split(line)
            if event in OBJECT_EVENTS:
                self._take_object(event, raw, line)
            else:
                await self._take_other(ask, event, raw)
            self._has_lines = True
            if was_current and not self._has_progressed:
                self._has_progressed = True
                self.last_error = None
                self._course.progressed()
            now = self.last_byte = monotonic()
            if now - began >= BATCH_SECONDS:
                await asyncio.sleep(0)

    def _take_object(self, event: str, raw: bytes, line: bytes) -> None:
        obj = self._decoder.decode(raw, line)
        if obj is not None and self._course.is_current:
            self._sink.apply(event, obj)
        elif obj is not None and event != "DELETED":
            self._initial[obj.metadata.key] = obj
        elif gone := self._decoder.identity(raw):
            # Unreadable is what a list would leave out: no ghost stays, no state that has passed.
            key, version = gone
            if self._course.is_current:
                self._sink.drop(key, version)
            else:
                self._initial.pop(key, None)

    async def _take_other(self, ask: Stream | Watch, event: str, raw: bytes) -> None:
        if event == "ERROR":
            raise self._decoder.error(raw)
        if event != "BOOKMARK":
            self._decoder.skip("unknown_type", event)
            return
        meta = self._decoder.bookmark(raw)
        if self._course.is_current:
            self._has_bookmarks = True
            self._sink.bookmark(meta.resource_version)
        elif meta.annotations.get(MARKER) == "true":
            await self._become_current(ask.resource_version, meta.resource_version)

    # Telling ------------------------------------------------------------------------------------

    def _note(self, err: errors.KaitoError) -> None:
        text = f"{err.reason}: {err}"
        if text != self.last_error:
            # A CRD that is not there may be no fault at all; readiness says where it is one.
            is_missing = isinstance(err, errors.KindNotServed)
            say = self._log.info if is_missing else self._log.warning
            say("watch failed", reason=err.reason, error=str(err))
        self.last_error = text

    def _count_restart(self, reason: str) -> None:
        metrics.INFORMER_WATCH_RESTARTS.labels(*self._labels, reason).inc()

    def _enter(self, state: State, cause: str) -> None:
        if state is not self.state:
            before, after = str(self.state), str(state)
            self._log.debug("watcher changed state", before=before, after=after, cause=cause)
            self.state = state

    def _refuse_selector(self, ask: course.Request, err: errors.KaitoError) -> None:
        """A field selector unknown to the server is our mistake, which no waiting mends (R30)."""
        selector = self._selectors.get("fieldSelector")
        first = isinstance(ask, List) and not ask.continue_token and not self._sink.resource_version
        if first and selector and isinstance(err, errors.InvalidRequest) and err.status == 400:
            raise errors.InvalidRequest(
                f"{self._kind} cannot be selected by {selector!r}: {err}", status=err.status
            ) from err
