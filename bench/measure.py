"""One measured figure, and whether it is where the project wants it."""

from __future__ import annotations

import importlib
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
    "=": operator.eq,
}


@dataclass(frozen=True)
class Measure:
    """``value``: the median where there are ``runs``.

    ``bar``: what the project aims for, as a comparison and a number (``<= 1.2``) in the measure's
    unit; empty where there is none. ``spread``: highest minus lowest run.
    """

    name: str
    value: float
    unit: str
    bar: str = ""
    runs: Sequence[float] = ()
    spread: float | None = None

    @classmethod
    def of(cls, name: str, runs: Sequence[float], unit: str, bar: str = "") -> Self:
        """The median of ``runs``, with all of them kept."""
        spread = max(runs) - min(runs)
        return cls(name, statistics.median(runs), unit, bar, tuple(runs), spread)

    @property
    def is_met(self) -> bool | None:
        """Whether the value is within its bar; None where there is none."""
        if not self.bar:
            return None
        comparison, bound = self.bar.split()
        return _COMPARISONS[comparison](self.value, float(bound))

    def as_json(self) -> dict[str, Any]:
        """What goes into ``bench/results/``."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bar": self.bar,
            "met": self.is_met,
            "runs": list(self.runs),
            "spread": self.spread,
        }


def measures_of(module: str) -> list[Measure]:
    """What ``bench.<module>`` yields; the module is imported here and not before."""
    return list(importlib.import_module(f"bench.{module}").measure())
