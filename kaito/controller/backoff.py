"""How long to wait before the next try. Pure arithmetic over a clock; nothing here sleeps.

The controller's own queue uses the first alone, as controller-runtime's priority queue does.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, Protocol, TypeVar

from kaito.clock import Clock

K = TypeVar("K", bound=Hashable)
K_contra = TypeVar("K_contra", bound=Hashable, contravariant=True)

BASE_SECONDS: Final = 0.005
CAP_SECONDS: Final = 1000.0
JITTER: Final = 0.1
"""Largest share added on top, so that equal failures do not move in step."""


class Limiter(Protocol[K_contra]):
    """Tells a key how long to wait."""

    def when(self, key: K_contra) -> float:
        """Seconds to wait for this try, which is counted."""
        ...

    def forget(self, key: K_contra) -> None:  # noqa: ARG002 - where no key is counted
        """The key succeeded: its next wait is the first again."""
        return

    def num_requeues(self, key: K_contra) -> int:  # noqa: ARG002 - where no key is counted
        """Tries counted since the last success."""
        return 0


class Tries(Generic[K]):
    """Counts per key. One unseen for ``keep`` seconds is evicted: its owner has stopped trying."""

    def __init__(self, *, clock: Clock, keep: float = 2 * CAP_SECONDS) -> None:
        self._clock = clock
        self._keep = keep
        self._counts: OrderedDict[K, tuple[int, float]] = OrderedDict()  # least recent first

    def count(self, key: K) -> int:
        """Tries before this one, which is counted."""
        now = self._clock.monotonic()
        while self._counts:
            oldest, (_, seen) = next(iter(self._counts.items()))
            if seen >= now - self._keep:
                break
            del self._counts[oldest]
        before, _ = self._counts.pop(key, (0, now))
        self._counts[key] = (before + 1, now)
        return before

    def forget(self, key: K) -> None:
        """See Limiter."""
        self._counts.pop(key, None)

    def num_requeues(self, key: K) -> int:
        """See Limiter."""
        return self._counts.get(key, (0, 0.0))[0]


class ExponentialBackoff(Tries[K]):
    """``base`` doubled per failure of a key, at most ``cap``, plus up to ``jitter`` of it."""

    def __init__(
        self,
        *,
        clock: Clock,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
        jitter: float = JITTER,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(clock=clock, keep=2 * cap)
        self._scale = (base, cap, jitter)
        self._uniform = uniform

    def when(self, key: K) -> float:
        """See Limiter."""
        base, cap, jitter = self._scale
        # 2.0 ** 1024 raises OverflowError; the cap is reached long before the 64th failure.
        return min(base * 2.0 ** min(self.count(key), 64), cap) * (1 + jitter * self._uniform())


class FastSlow(Tries[K]):
    """``fast`` seconds for the first ``tries`` of a key, ``slow`` for all later ones."""

    def __init__(self, *, clock: Clock, fast: float, slow: float, tries: int) -> None:
        super().__init__(clock=clock, keep=max(2 * slow, 2 * CAP_SECONDS))
        self._waits = (tries, fast, slow)

    def when(self, key: K) -> float:
        """See Limiter."""
        tries, fast, slow = self._waits
        return fast if self.count(key) < tries else slow


class TokenBucket(Limiter[Hashable]):
    """One bucket for all keys, with reservations: every caller is told its own turn."""

    def __init__(self, *, clock: Clock, rate: float = 10, burst: int = 100) -> None:
        self._clock = clock
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at = clock.monotonic()

    def when(self, key: Hashable = None) -> float:  # noqa: ARG002 - all keys share the bucket
        """See Limiter."""
        self._fill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def take(self) -> bool:
        """Take a token if one is there now; reserve nothing else."""
        self._fill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _fill(self) -> None:
        now = max(self._filled_at, self._clock.monotonic())  # a step back fills nothing
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now


class MaxOf(Generic[K]):
    """Asks every limiter and takes the longest wait, cut to ``at_most``."""

    def __init__(self, *limiters: Limiter[K], at_most: float = float("inf")) -> None:
        self._limiters = limiters
        self._at_most = at_most

    def when(self, key: K) -> float:
        """See Limiter."""
        return min(self._at_most, max([limiter.when(key) for limiter in self._limiters]))

    def forget(self, key: K) -> None:
        """See Limiter."""
        for limiter in self._limiters:
            limiter.forget(key)

    def num_requeues(self, key: K) -> int:
        """See Limiter."""
        return max(limiter.num_requeues(key) for limiter in self._limiters)
