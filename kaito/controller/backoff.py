"""How long to wait before the next try. Pure arithmetic over a clock; nothing here sleeps."""

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

    def forget(self, key: K_contra) -> None:
        """The key succeeded: its next wait is the first again."""
        ...

    def num_requeues(self, key: K_contra) -> int:
        """Tries counted since the last success."""
        ...


class ExponentialBackoff(Generic[K]):
    """``base`` doubled per failure of a key, at most ``cap``, plus up to ``jitter`` of it.

    A key unseen for twice the cap is evicted: its owner has stopped trying.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        base: float = BASE_SECONDS,
        cap: float = CAP_SECONDS,
        jitter: float = JITTER,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._uniform = uniform
        self._failures: OrderedDict[K, tuple[int, float]] = OrderedDict()  # least recent first

    def when(self, key: K) -> float:
        """See Limiter."""
        now = self._clock.monotonic()
        self._evict(now - 2 * self._cap)
        count = self.num_requeues(key)
        self._failures[key] = (count + 1, now)
        self._failures.move_to_end(key)
        # 2.0 ** 1024 raises OverflowError; the cap is reached long before the 64th failure.
        wait = min(self._base * 2.0 ** min(count, 64), self._cap)
        return wait * (1 + self._jitter * self._uniform())

    def forget(self, key: K) -> None:
        """See Limiter."""
        self._failures.pop(key, None)

    def num_requeues(self, key: K) -> int:
        """See Limiter."""
        return self._failures.get(key, (0, 0.0))[0]

    def _evict(self, seen_before: float) -> None:
        while self._failures:
            key, (_, seen) = next(iter(self._failures.items()))
            if seen >= seen_before:
                return
            del self._failures[key]


class TokenBucket:
    """One bucket for all keys, with reservations: every caller is told its own turn."""

    def __init__(self, *, clock: Clock, rate: float, burst: int) -> None:
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

    def forget(self, key: Hashable) -> None:
        """See Limiter. A bucket remembers no key."""

    def num_requeues(self, key: Hashable) -> int:  # noqa: ARG002 - a bucket counts no key
        """See Limiter. A bucket remembers no key."""
        return 0

    def _fill(self) -> None:
        now = self._clock.monotonic()
        elapsed = max(0.0, now - self._filled_at)  # a clock that steps back fills nothing
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._filled_at = max(now, self._filled_at)


class MaxOf(Generic[K]):
    """Asks every limiter and takes the longest wait."""

    def __init__(self, *limiters: Limiter[K]) -> None:
        self._limiters = limiters

    def when(self, key: K) -> float:
        """See Limiter."""
        return max(limiter.when(key) for limiter in self._limiters)

    def forget(self, key: K) -> None:
        """See Limiter."""
        for limiter in self._limiters:
            limiter.forget(key)

    def num_requeues(self, key: K) -> int:
        """See Limiter."""
        return max(limiter.num_requeues(key) for limiter in self._limiters)
