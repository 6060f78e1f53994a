"""One measured figure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Measure:
    """``bar``: what the project aims for, as text; empty where there is none."""

    name: str
    value: float
    unit: str
    bar: str = ""
