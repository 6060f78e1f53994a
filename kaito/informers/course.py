"""The protocol of list and watch, without I/O: what to ask next, given what happened.

``Course.next`` yields an ask; whoever carries it out reports what came of it: ``paged``,
``synced``, ``ended``, ``fell_silent``, ``failed`` or ``spoiled``. Time and chance are arguments, so
transitions are tested by plain calls. Numbers are client-go's where it has one (facts R1 to R26).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from kaito import errors

PAGE_LIMIT: Final = 500
MIN_WATCH_SECONDS: Final = 300.0
NOT_SERVED_SECONDS: Final = 10.0
SHORT_WATCH_SECONDS: Final = 1.0
OVERLOAD_SECONDS: Final = 30.0
BACKOFF_FIRST: Final = 0.8
BACKOFF_CAP: Final = 30.0
BACKOFF_RESET: Final = 120.0

_PASSING: Final = (
    errors.TransportError,
    errors.TooManyRequests,
    errors.Unauthorized,
    errors.Forbidden,
)
"""Errors that say nothing of our version: it is kept, and asked with again."""


class State(StrEnum):
    """Where a watcher is; each change of it is one debug line."""

    STARTING = "starting"
    STREAMING = "streaming"
    LISTING = "listing"
    WATCHING = "watching"
    BACKING_OFF = "backing off"
    NOT_SERVED = "not served"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Stream:
    """A list as a stream of events up to its marker; the same stream goes on as the watch."""

    resource_version: str


@dataclass(frozen=True, slots=True)
class List:
    """A list, or one page of it. ``limit`` 0: everything in one body."""

    resource_version: str
    limit: int = 0
    continue_token: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """A plain watch. Always from a concrete version: none, or 0, would replay all objects."""

    resource_version: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask nothing for a while; ``state`` is BACKING_OFF or NOT_SERVED."""

    seconds: float
    state: State = State.BACKING_OFF


Request = Stream | List | Watch
Ask = Request | Pause


def query(ask: Request, timeout_seconds: int = 0) -> dict[str, str]:
    """Query parameters of an ask, selectors not included. ``timeout_seconds``: of a watch."""
    match ask:
        case List(continue_token=token) if token:
            # The token implies the version; with both, the server answers 400.
            return {"limit": str(ask.limit), "continue": token}
        case List(version, limit):
            pairs = {"resourceVersion": version, "limit": str(limit or "")}
        case Stream(version) | Watch(version):
            pairs = {
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(timeout_seconds),
            }
    if isinstance(ask, Stream):
        pairs |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    return {name: value for name, value in pairs.items() if value}


class Waits:
    """One sequence of back-offs for list and watch: doubling, with jitter on top (R20)."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._step = BACKOFF_FIRST
        self._last: float | None = None

    def next(self, now: float) -> float:
        """Seconds to wait after a failure at ``now``."""
        if self._last is not None and now - self._last >= BACKOFF_RESET:
            self._step = BACKOFF_FIRST
        self._last = now
        step, self._step = self._step, min(self._step * 2, BACKOFF_CAP)
        return step * (1 + self._chance())


class Course:
    """Where list and watch of one kind stand.

    ``chance``: uniform in [0, 1).
    """

    def __init__(self, *, chance: Callable[[], float]) -> None:
        self.can_stream = True
        self.is_current = False
        self.list_reason = "first"
        # Of the first plain list: "0" takes any state from the cache of a server before 1.34; newer
        # ones serve consistent pages from it, for which no version is named (R7).
        self.first_version = "0"
        self._waits = Waits(chance)
        self._pause: Pause | None = None
        self._next_list: List | None = None
        self._unset = False
        self._paged_at_zero = False
        self._expired = self._silent = self._spoiled = 0
        self._overloaded_since: float | None = None

    def next(self, last: str) -> Ask:
        """What to do now. ``last``: the version the cache is at, empty before the first list."""
        if self._pause is not None:
            pause, self._pause = self._pause, None
            return pause
        if self.is_current:
            return Watch(last)
        if self._next_list is not None:
            return self._next_list
        version = "" if self._unset else last
        if self.can_stream:
            return Stream(version)
        if not version and not self._unset:
            version = self.first_version
        unlimited = version not in ("", "0") and not self._paged_at_zero
        return List(version, 0 if unlimited else PAGE_LIMIT)

    def paged(self, ask: List, token: str) -> None:
        """One page came and more follow. At version 0 that means: no watch cache to spare (R10)."""
        if ask.resource_version == "0":
            self._paged_at_zero = True
        self._next_list = replace(ask, limit=ask.limit or PAGE_LIMIT, continue_token=token)

    def synced(self) -> None:
        """A complete list is in the cache: from here on, watch."""
        self.is_current = True
        self._unset = False
        self._next_list = None

    def progressed(self) -> None:
        """The watch brought something: what counts "in a row" starts anew."""
        self._expired = self._silent = self._spoiled = 0
        self._overloaded_since = None

    def ended(self, *, seconds: float, was_silent: bool, now: float) -> None:
        """The stream ended cleanly after ``seconds``. ``was_silent``: not one line came."""
        if not self.is_current and seconds >= MIN_WATCH_SECONDS:
            self.can_stream = False  # it had time enough, and events kept it from falling silent
        elif not self.is_current or (was_silent and seconds < SHORT_WATCH_SECONDS):
            self._back_off(now)
        elif was_silent and seconds >= MIN_WATCH_SECONDS:
            # A server behind our version keeps such a watch silent to its end (R25).
            self._count_silence()

    def fell_silent(self, *, was_silent: bool) -> None:
        """The idle limit passed. Before the marker: a server that does not know the stream (R6)."""
        if not self.is_current:
            self.can_stream = False
        elif was_silent:
            self._count_silence()

    def spoiled(self, now: float) -> None:
        """A line was not an event. Three in a row at one version: list again (W7)."""
        self._spoiled += 1
        if self._spoiled >= 3:
            self._list_again("bad_data")
        self._back_off(now)

    def failed(self, ask: Request, error: errors.ApiError, now: float) -> None:
        """The server refused, or the connection broke, or the stream carried an ERROR."""
        self._next_list = None
        match error:
            case errors.KindNotServed():
                self._list_again("first")
                self._pause = Pause(NOT_SERVED_SECONDS, State.NOT_SERVED)
            case errors.Expired() | errors.ResourceVersionTooLarge() if not self.is_current:
                self._list_without_version(ask, error, now)
            case errors.Expired():
                self._expired += 1
                self._list_again("expired")
                if self._expired > 1:
                    self._back_off(now)
            case errors.InvalidRequest() if isinstance(ask, Stream) and not self.is_current:
                self.can_stream = False
            case _ if isinstance(error, _PASSING):
                self._back_off(now, error)
            case errors.ServerUnavailable():
                if self._overloaded_since is None:
                    self._overloaded_since = now
                elif now - self._overloaded_since >= OVERLOAD_SECONDS:
                    self._list_again("error")
                self._back_off(now, error)
            case _:
                self._list_again("error")
                self._back_off(now, error)

    def _list_without_version(self, ask: Request, error: errors.ApiError, now: float) -> None:
        if isinstance(ask, List) and ask.continue_token:
            # The Status offers a fresh token: it would join two versions into one list (R11).
            self._next_list = List(ask.resource_version)
        elif ask.resource_version and not self._unset:
            self._unset = True
            self.list_reason = "expired" if isinstance(error, errors.Expired) else "too_large"
        else:
            self._back_off(now, error)

    def _count_silence(self) -> None:
        self._silent += 1
        if self._silent >= 2:
            self._silent = 0
            self._unset = True
            self._list_again("silent")

    def _list_again(self, reason: str) -> None:
        self.is_current = False
        self.list_reason = reason
        self._overloaded_since = None

    def _back_off(self, now: float, error: errors.ApiError | None = None) -> None:
        seconds = self._waits.next(now)
        match error.retry if error is not None else None:
            case errors.After(wait) | errors.Backoff(wait):
                seconds = max(seconds, wait)
        self._pause = Pause(seconds)
