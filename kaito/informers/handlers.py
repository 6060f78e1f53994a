"""What an event is to its readers, and how it becomes keys.

A handler is a plain function called in the watch's own turn: it maps and enqueues, nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec
import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock
from kaito.informers.lister import Lister

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)

PIECE_SECONDS: Final = 0.003
SLOW_SECONDS: Final = 0.001
SLOW_QUIET_SECONDS: Final = 60.0


# A msgspec struct where the house uses dataclasses: one is made per event, at a tenth of the cost.
class Change(msgspec.Struct, Generic[T], frozen=True, gc=False):
    """One object before and after. ``old`` None: added; ``new`` None: deleted.

    ``old`` of a deletion is the object's last state as far as known; a deletion that only a relist
    showed looks the same (facts S5). ``initial``: an add of the first list, or replayed to a
    handler that came later; nothing else (S7). ``relisted``: a list showed it, initial or not, so
    several events may have become this one.
    """

    old: T | None
    new: T | None
    initial: bool = False
    relisted: bool = False

    @property
    def obj(self) -> T:
        """The newest state there is."""
        obj = self.new if self.new is not None else self.old
        assert obj is not None, "a change has at least one side"
        return obj


Handler = Callable[[Change[T]], None]
KeyMapper = Callable[[Change[T]], list[Key]]


class Registration(Generic[T]):
    """A handler while it is registered. ``resync_seconds``: 0 for none.

    ``behind``: what its replay has still to tell it of. Of these it hears nothing else before, and
    then in the state they have by then: nothing is lost or doubled (S8).
    """

    def __init__(self, handler: Handler[T], lister: Lister[T], resync_seconds: float) -> None:
        self.name: str = getattr(handler, "__qualname__", repr(handler))
        self.handler = handler
        self.hear: Handler[T] = self._hear_of_known
        self.lister = lister
        self.resync_seconds = resync_seconds
        self.behind = dict.fromkeys(obj.metadata.key for obj in reversed(lister.list()))
        self.replayed = asyncio.Event()
        self.slow_logged = float("-inf")

    @property
    def has_synced(self) -> bool:
        """The first list is complete, and this handler has heard of all in it."""
        return self.replayed.is_set() and self.lister.has_synced

    def _hear_of_known(self, change: Change[T]) -> None:
        if change.obj.metadata.key not in self.behind:
            self.handler(change)


class Handlers(Generic[T]):
    """The handlers of one informer. ``labels``: of its metrics.

    ``telling``: held from a list's swap until all were told of it; a resync meanwhile would show
    states whose change is still to come.
    """

    def __init__(self, labels: tuple[str, str], *, clock: Clock) -> None:
        self.registrations: tuple[Registration[T], ...] = ()
        self.telling = asyncio.Lock()
        self.labels = labels
        self._monotonic = clock.monotonic
        self._errors = metrics.INFORMER_HANDLER_ERRORS.labels(*labels)

    def add(self, registration: Registration[T]) -> None:
        """From here on it hears of changes; what was there already, ``replay`` tells it."""
        self.registrations = (*self.registrations, registration)

    def remove(self, registration: Registration[T]) -> None:
        """Not called again, also by what is being told now. Harmless for one that is not here."""
        if registration in self.registrations:
            self.registrations = tuple(r for r in self.registrations if r is not registration)
            registration.handler = registration.hear = _ignore

    def replay(self, registration: Registration[T]) -> Iterator[None]:
        """Tell one of what it is behind with, an object a step. May be left off and begun again."""
        while registration.behind:
            key, _ = registration.behind.popitem()  # from the end, so it was filled backwards
            known = registration.lister.get(*key)
            if known is not None:
                change = Change(None, known, initial=True, relisted=True)
                self.tell((registration,), (change,))
            yield
        registration.hear = registration.handler
        registration.replayed.set()

    def resync(self, registration: Registration[T]) -> Iterator[None]:
        """Tell one again of all that is there, an object a step."""
        lister = registration.lister
        for obj in lister.list():
            if lister.get(*obj.metadata.key) is obj:  # else it has just heard of a newer state
                self.tell((registration,), (Change(obj, obj),))
            yield

    def piece(self, steps: Iterator[object]) -> bool:
        """Take steps for 3 ms, the last may end later. True: some may be left."""
        began = self._monotonic()
        return any(self._monotonic() - began > PIECE_SECONDS for _ in steps)

    async def in_pieces(self, steps: Iterator[object]) -> None:
        """Take them all, giving the loop a turn after each piece."""
        while self.piece(steps):  # noqa: ASYNC110  a turn for others, not a wait for something
            await asyncio.sleep(0)

    async def all_replayed(self) -> None:
        """Until none is behind: a list's changes would mix with what is still to be replayed."""
        while late := [r for r in self.registrations if r.behind]:
            await late[0].replayed.wait()

    def tell(
        self, registrations: tuple[Registration[T], ...], changes: Iterable[Change[T]]
    ) -> None:
        """Call each with each. Hot: one look at the clock per call tells who was slow."""
        now = self._monotonic()
        for change in changes:
            for registration in registrations:
                try:
                    registration.hear(change)
                except Exception:
                    self._errors.inc()
                    log.exception("handler failed", handler=registration.name, kind=self.labels[0])
                began, now = now, self._monotonic()
                if now - began > SLOW_SECONDS:
                    self._warn_slow(registration, now, now - began)

    def _warn_slow(self, registration: Registration[T], now: float, seconds: float) -> None:
        if now - registration.slow_logged >= SLOW_QUIET_SECONDS:
            registration.slow_logged = now
            log.warning("slow handler", handler=registration.name, seconds=seconds)


def _ignore(_change: Change[Any]) -> None:
    """A handler that was removed."""


def own_key(change: Change[T]) -> list[Key]:
    """The object is itself what is reconciled."""
    return [change.obj.metadata.key]


def owner_keys(
    api_group: str, kind: str, *, namespaced: bool = True, controller_only: bool = True
) -> KeyMapper[Any]:
    """Keys of the owners of a kind, of the old state too: who lost a child must learn of it.

    ``api_group``: without the version, ``""`` for core; an owner's version may differ from ours.
    ``namespaced``: the owner's kind is, so that it lives in its child's namespace.
    ``controller_only``: not owners that merely want the child collected with them.
    """

    def keys(change: Change[Any]) -> list[Key]:
        sides = [obj.metadata for obj in (change.old, change.new) if obj is not None]
        found = (
            (meta.namespace if namespaced else "", owner.name)
            for meta in sides
            for owner in meta.owner_references
            if owner.kind == kind
            and owner.api_version.rpartition("/")[0] == api_group
            and (owner.controller or not controller_only)
        )
        return list(dict.fromkeys(found))  # each once

    return keys
