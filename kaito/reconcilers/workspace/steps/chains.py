"""The three chains: a living Workspace, one that is being deleted, one that is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.state import Orphaned, State
from kaito.reconcilers.workspace.steps.cleanup import (
    release_claims,
    release_nodes,
    remove_finalizer,
    stop_workload,
)
from kaito.reconcilers.workspace.steps.finalizer import finalizer
from kaito.reconcilers.workspace.steps.inference import inference
from kaito.reconcilers.workspace.steps.nodes import nodes
from kaito.reconcilers.workspace.steps.orphans import orphans
from kaito.reconcilers.workspace.steps.service import service
from kaito.reconcilers.workspace.steps.validate import validate

STEPS: Final[tuple[Callable[[State], Step], ...]] = (finalizer, validate, nodes, service, inference)
CLEANUP: Final[tuple[Callable[[State], Step], ...]] = (
    stop_workload,
    release_claims,
    release_nodes,
    remove_finalizer,
)
ORPHANS: Final[tuple[Callable[[Orphaned], Step], ...]] = (orphans,)
