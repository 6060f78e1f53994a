"""Token buckets in front of the service: Resource Manager's own (P9.6) and those of AKS (P9.5)."""

from __future__ import annotations

from dataclasses import dataclass

from kaito.clock import Clock
from kaito.sandbox.answers import Refused


@dataclass(slots=True)
class _Bucket:
    size: float
    refill_per_second: float
    tokens: float
    filled_at: float

    def fill(self, now: float) -> None:
        self.tokens = min(self.size, self.tokens + (now - self.filled_at) * self.refill_per_second)
        self.filled_at = now


class Throttle:
    """Counts always, refuses only when ``is_enforced``."""

    def __init__(self, clock: Clock, *, is_enforced: bool) -> None:
        self._clock = clock
        self._is_enforced = is_enforced
        self._buckets: dict[str, _Bucket] = {}

    def front_door(self, kind: str) -> int:
        """Take one of ``reads``, ``writes`` or ``deletes``; how many are left.

        Raises:
            Refused: 429 of Resource Manager.
        """
        size, refill = (250, 25.0) if kind == "reads" else (200, 10.0)
        return self._take(kind, size, refill, "TooManyRequests")

    def service(self, operation: str, pool: str) -> None:
        """Take one of the AKS bucket that this call draws on.

        Raises:
            Refused: 429 of AKS.
        """
        if operation == "put":
            self._take(f"put/{pool}", 20, 1 / 60, "Throttled")
        elif operation == "operation":
            self._take("operations", 200, 2.0, "Throttled")
        else:
            self._take("other", 60, 1.0, "Throttled")

    def _take(self, name: str, size: int, refill: float, code: str) -> int:
        now = self._clock.monotonic()
        bucket = self._buckets.setdefault(name, _Bucket(size, refill, size, now))
        bucket.fill(now)
        if bucket.tokens < 1:
            if self._is_enforced:
                raise Refused(
                    429,
                    code,
                    f"The request was throttled: no more calls are allowed now in bucket {name}",
                    retry_after=(1 - bucket.tokens) / refill,
                )
            return 0
        bucket.tokens -= 1
        return int(bucket.tokens)
