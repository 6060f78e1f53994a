"""The two chains: for a claim that is wanted, and for one that is being deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps.drain import drain
from kaito.reconcilers.machine.steps.finalize import finalize, node_removal
from kaito.reconcilers.machine.steps.finalizer import finalizer
from kaito.reconcilers.machine.steps.initialization import initialization
from kaito.reconcilers.machine.steps.launch import launch
from kaito.reconcilers.machine.steps.registration import registration
from kaito.reconcilers.machine.steps.release import held, strays
from kaito.reconcilers.machine.steps.terminate import terminate

Chain = tuple[Callable[[State], Step], ...]

LIFE: Final[Chain] = (finalizer, strays, held, launch, registration, initialization)
TERMINATION: Final[Chain] = (strays, drain, terminate, node_removal, finalize)
