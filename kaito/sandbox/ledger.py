"""What the cloud would bill: every VM ever made, and how often each operation was called.

A VM lives from its pool's accepted PUT to the moment the pool is gone, whatever state the pool is
in meanwhile: a failed or cancelled creation may have left a machine running (P5.11, P5.18).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kaito.clock import Clock, rfc3339

OPERATIONS: Final = ("put", "get", "list", "delete", "abort")


@dataclass(slots=True)
class _Vm:
    pool: str
    vm_size: str
    created: str
    born: float
    deleted: str | None = None
    died: float | None = None


class Ledger:
    """Book of VMs and calls; only ever added to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._vms: list[_Vm] = []
        self._peak = 0
        self.calls = dict.fromkeys(OPERATIONS, 0)

    @property
    def live(self) -> int:
        """VMs alive now."""
        return sum(vm.died is None for vm in self._vms)

    @property
    def peak(self) -> int:
        """The most VMs alive at one moment."""
        return self._peak

    def count(self, operation: str) -> None:
        """One more call of this operation, whatever its answer will be."""
        self.calls[operation] += 1

    def resize(self, pool: str, vm_size: str, count: int) -> None:
        """The pool has ``count`` VMs from now on: new ones are opened, the newest end first."""
        alive = [vm for vm in self._vms if vm.pool == pool and vm.died is None]
        moment, stamp = self._clock.monotonic(), rfc3339(self._clock.now())
        for vm in alive[count:]:
            vm.died, vm.deleted = moment, stamp
        for _ in range(len(alive), count):
            self._vms.append(_Vm(pool, vm_size, stamp, moment))
        self._peak = max(self._peak, self.live)

    def close(self, pool: str) -> None:
        """The pool is gone, and its VMs with it."""
        self.resize(pool, "", 0)

    def as_json(self) -> dict[str, Any]:
        """The answer to ``GET /sandbox/ledger``."""
        now = self._clock.monotonic()
        return {
            "vms": [
                {
                    "pool": vm.pool,
                    "vm_size": vm.vm_size,
                    "created": vm.created,
                    "deleted": vm.deleted,
                    "billed_seconds": round((now if vm.died is None else vm.died) - vm.born, 3),
                }
                for vm in self._vms
            ],
            "live": self.live,
            "peak": self.peak,
            "calls": dict(self.calls),
        }
