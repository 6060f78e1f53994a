"""vCPU quota per family and region, refused at PUT in compute's own words (P5.19, P6.4, P7.9)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from kaito.sandbox.answers import Refused
from kaito.sandbox.pool_request import PoolRequest
from kaito.sandbox.vm_sizes import VmSize

REGIONAL: Final = "cores"
SPOT: Final = "lowPriorityCores"


class Sized(Protocol):
    """What quota needs to know of a pool."""

    @property
    def size(self) -> VmSize:
        """VM size of all its machines."""
        ...

    @property
    def count(self) -> int:
        """Number of its machines."""
        ...

    @property
    def properties(self) -> Mapping[str, Any]:
        """As sent; ``scaleSetPriority`` is read."""
        ...


def check_quota(
    quota: Mapping[str, int],
    pools: Iterable[Sized],
    request: PoolRequest,
    added: int,
    *,
    location: str,
) -> None:
    """Pools count until they are gone, whatever their state. A family without entry has no limit.

    Raises:
        Refused: 400, with limit, usage and what is needed in its text.
    """
    limits = {family.lower(): limit for family, limit in quota.items()}
    needed = request.size.vcpus * added
    family = request.size.family
    names = (SPOT,) if request.is_spot else (family, REGIONAL)
    same_kind = [p for p in pools if is_spot(p.properties) == request.is_spot]
    for name in names:
        limit = limits.get(name.lower())
        counted = (p for p in same_kind if name != family or p.size.family == family)
        used = sum(p.size.vcpus * p.count for p in counted)
        if limit is not None and needed > 0 and used + needed > limit:
            raise _exceeded(_IN_TEXT.get(name, f"{name} Cores"), location, limit, used, needed)


def is_spot(properties: Mapping[str, Any]) -> bool:
    """The pool's machines are bought as spot."""
    return properties.get("scaleSetPriority") == "Spot"


_IN_TEXT: Final = {REGIONAL: "Total Regional Cores", SPOT: "LowPriorityCores"}


def _exceeded(name: str, location: str, limit: int, used: int, needed: int) -> Refused:
    text = (
        f"Operation could not be completed as it results in exceeding approved {name} quota."
        f" Additional details - Deployment Model: Resource Manager, Location: {location}, "
        f"Current Limit: {limit}, Current Usage: {used}, Additional Required: {needed}, "
        f"(Minimum) New Limit Required: {used + needed}."
    )
    details = ({"code": "QuotaExceeded", "message": text, "target": name},)
    return Refused(400, "OperationNotAllowed", text, details=details)
