"""Kubernetes quantities (``50Gi``, ``100m``, ``1e3``), read exactly."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Final

GIB: Final = 2**30

_FORM: Final = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d+))?", re.ASCII
)
_FACTORS: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(1000),
    **{unit: Decimal(1000**power) for power, unit in enumerate("MGTPE", 2)},
    **{f"{unit}i": Decimal(1024**power) for power, unit in enumerate("KMGTPE", 1)},
}
_MAX_EXPONENT: Final = 64  # far past any int64; keeps a hostile 1e999999 from being written out


def parse_quantity(text: str | int) -> Decimal:
    """The value in the resource's own unit (bytes, cores, pieces).

    Raises:
        ValueError: not a quantity.
    """
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity such as 50Gi, 500m or 2")
    number, suffix, exponent = match.groups()
    value = Decimal(number)
    if suffix:
        return value * _FACTORS[suffix]
    if exponent:
        if abs(int(exponent)) > _MAX_EXPONENT:
            raise ValueError(f"{text!r} is out of range")
        return value.scaleb(int(exponent))
    return value


def whole(text: str | int) -> int:
    """The value in whole units, rounded up as the API server's own ``Quantity.Value`` does.

    Raises:
        ValueError: not a quantity.
    """
    return int(parse_quantity(text).to_integral_value(ROUND_CEILING))


def gib(text: str | int) -> Decimal:
    """The value in GiB.

    Raises:
        ValueError: not a quantity.
    """
    return parse_quantity(text) / GIB
