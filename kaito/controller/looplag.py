"""Notices a loop that is held: the stack of the code that holds it, and a histogram of lag."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Final

import structlog

from kaito import metrics
from kaito.clock import Clock, Timer

log = structlog.get_logger()

BEAT_SECONDS: Final = 0.25
LATE_SECONDS: Final = 0.85
"""With the beat and the second look: a hold is noticed between 0.95 and 1.2 s."""
DEAD_SECONDS: Final = 5.0
STANDSTILL_SECONDS: Final = 0.1


@dataclass(eq=False, kw_only=True)
class LoopWatch:
    """The loop beats; a thread looks whether it still does. Logs once per hold.

    ``beat``: seconds between beats. ``late``: lateness of a beat that is a hold.
    """

    clock: Clock
    beat: float = BEAT_SECONDS
    late: float = LATE_SECONDS

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread: threading.Thread
        self._timer: Timer | None = None  # until it is started
        self._due = 0.0

    def start(self) -> None:
        """Watch the running loop."""
        self._next_beat()
        watched = threading.get_ident()
        self._thread = threading.Thread(None, self._watch, "loop-watch", (watched,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave no thread and no timer."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
            self._thread.join()

    def health(self) -> str | None:
        """None while the loop turns, else for how long it has not. From any thread."""
        late = self.clock.monotonic() - self._due
        return f"the event loop is held since {late:.0f} s" if late > DEAD_SECONDS else None

    def _next_beat(self) -> None:
        self._due = self.clock.monotonic() + self.beat
        self._timer = self.clock.call_later(self.beat, self._beat)

    def _beat(self) -> None:
        metrics.LOOP_LAG_SECONDS.observe(max(0.0, self.clock.monotonic() - self._due))
        self._next_beat()

    def _watch(self, watched: int) -> None:
        logged = 0.0
        # Sleeps until the present beat would be late, so it wakes about once a second.
        wait = self.late
        while not self._ended.wait(wait):
            due = self._due
            late = self.clock.monotonic() - due
            wait = max(self.beat, self.late - late)
            if late < self.late or due == logged:
                continue
            # After a suspension both are late; the loop then needs but a moment.
            if self._ended.wait(STANDSTILL_SECONDS) or self._due != due:
                continue
            logged = due
            stack = "".join(traceback.format_stack(sys._current_frames().get(watched)))
            log.error("event loop held", seconds=round(late, 1), stack=stack)
