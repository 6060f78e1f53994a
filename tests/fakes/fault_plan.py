"""What goes wrong between a client and the API server, and when. Pure: ``fault_proxy`` does it.

A plan is asked once per call. ``Seeded`` answers from a seed and the call alone: the n-th call of a
verb and path meets the same fate in every run, however the others fall between. ``Script`` answers
what a test told it to.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """``verb``: the HTTP method, or WATCH. ``number``: of this verb and path, from 1."""

    verb: str
    path: str
    query: Mapping[str, str]
    number: int

    def __str__(self) -> str:
        asked = "&".join(f"{name}={value}" for name, value in self.query.items())
        return f"{self.verb} {self.path}{'?' if asked else ''}{asked} ({self.number})"


# Where a fault has ``after``, it counts whole lines of a watch, of any other reply bytes of the
# body. Lines count from the first that shows a change, so not those of a streamed list and its
# marker; with ``initial`` they count from the stream's first line.


@dataclass(frozen=True, slots=True)
class Unsent:
    """The connection breaks before the server hears of the call."""


@dataclass(frozen=True, slots=True)
class LostReply:
    """The server carries the call out; the connection breaks before a byte of its reply."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """An answer of the proxy's own in the server's place: see ``refusal``."""

    status: int
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The reply ends in the middle: of a line, of an HTTP chunk.

    ``how``: ``close`` (FIN), ``reset`` (RST), ``end`` (a proper end of body, after half a line).
    """

    after: int = 0
    how: str = "close"
    initial: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """Half-open: no byte comes any more, and no end."""

    after: int = 0
    initial: bool = False


@dataclass(frozen=True, slots=True)
class ErrorLine:
    """An ERROR event of that code, then a proper end. Watches only."""

    after: int = 0
    code: int = 410
    initial: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """The reply comes later; a watch's every line does, in order. Of one kind: reordering."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Every so manieth line comes twice. Watches only."""

    every: int = 1


@dataclass(frozen=True, slots=True)
class Trickle:
    """The first bytes of the body come one at a time, ``pause`` seconds apart."""

    count: int
    pause: float = 0.0


Fault = Unsent | LostReply | Refuse | Cut | Silence | ErrorLine | Delay | Duplicate | Trickle


class Plan(Protocol):
    """Decides what happens to a call."""

    def decide(self, call: Call) -> Fault | None:
        """None: nothing."""
        ...


@dataclass(slots=True)
class Script:
    """Faults one after another for the calls that they are meant for."""

    _steps: list[tuple[Callable[[Call], bool], Fault, int]] = field(default_factory=list)

    def add(self, fault: Fault, verb: str, *, path: str = "", times: int = 1) -> None:
        """For the next ``times`` calls of the verb whose path contains ``path``."""
        self._steps.append((lambda call: call.verb == verb and path in call.path, fault, times))

    def clear(self) -> None:
        self._steps.clear()

    def decide(self, call: Call) -> Fault | None:
        """See Plan."""
        for place, (matches, fault, times) in enumerate(self._steps):
            if matches(call):
                if times > 1:
                    self._steps[place] = (matches, fault, times - 1)
                else:
                    del self._steps[place]
                return fault
        return None


@dataclass(frozen=True, slots=True)
class Seeded:
    """``watches`` and ``calls``: the share of them, 0 to 1, that something happens to."""

    seed: int
    watches: float = 0.8
    calls: float = 0.15

    def decide(self, call: Call) -> Fault | None:
        """See Plan."""
        chance = random.Random(f"{self.seed} {call.verb} {call.path} {call.number}")
        if call.verb == "WATCH":
            share, faults = self.watches, _WATCH_FAULTS
        else:
            share, faults = self.calls, _CALL_FAULTS
        return chance.choice(faults)(chance) if chance.random() < share else None


_Make = Callable[[random.Random], Fault]

_CALL_FAULTS: Final[Sequence[_Make]] = (
    lambda _: Unsent(),
    lambda _: LostReply(),
    lambda chance: Cut(chance.randrange(200), chance.choice(("close", "reset"))),
    lambda chance: Refuse(429, retry_after=chance.choice((None, 0, 1))),
    lambda chance: Refuse(chance.choice((500, 503))),
    lambda chance: Delay(chance.uniform(0.01, 0.5)),
    lambda chance: Trickle(chance.randrange(1, 400)),
)
_WATCH_FAULTS: Final[Sequence[_Make]] = (
    lambda _: Unsent(),
    lambda _: LostReply(),
    lambda chance: Cut(_some(chance), chance.choice(("close", "reset", "end"))),
    lambda chance: Cut(_some(chance), chance.choice(("close", "reset", "end")), initial=True),
    lambda chance: ErrorLine(_some(chance), chance.choice((410, 410, 429, 500, 503))),
    lambda chance: ErrorLine(_some(chance), 410, initial=True),
    lambda chance: Silence(_some(chance)),
    lambda chance: Silence(_some(chance), initial=True),
    lambda chance: Refuse(chance.choice((410, 429, 500, 503)), chance.choice((None, 1))),
    lambda chance: Delay(chance.uniform(0.05, 1.0)),
    lambda chance: Duplicate(chance.randrange(1, 5)),
    lambda chance: Trickle(chance.randrange(1, 3000)),
)


def _some(chance: random.Random) -> int:
    """Often soon, sometimes after many lines."""
    return int(chance.expovariate(1 / 40))


def refusal(fault: Refuse) -> tuple[str, bytes]:
    """Content type and body, of each status the kind of answer that is seen in the field."""
    match fault.status:
        case 429:
            return "text/plain", b"Too many requests, please try again later.\n"
        case 500 | 502 | 503:
            page = f"<html><body><h1>{fault.status} upstream trouble</h1></body></html>\n"
            return "text/html", page.encode()
        case code:
            return "application/json", json.dumps(_status(code)).encode()


def error_line(code: int) -> bytes:
    """An ERROR event as a watch carries it, with its newline."""
    return json.dumps({"type": "ERROR", "object": _status(code)}).encode() + b"\n"


_REASONS: Final = {410: "Expired", 429: "TooManyRequests", 500: "InternalError"}


def _status(code: int) -> dict[str, object]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "made up by the fault proxy",
        "reason": _REASONS.get(code, "ServiceUnavailable"),
        "code": code,
    }
