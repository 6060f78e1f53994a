"""Put our finalizer on the Workspace before anything is bought for it."""

from __future__ import annotations

from kaito import constants
from kaito.reconcilers.actions import Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.naming import workspace_ref
from kaito.reconcilers.workspace.state import State


def finalizer(state: State) -> Step:
    """Hold all else until the finalizer is seen on the object: a launch without it could leak."""
    meta = state.workspace.metadata
    if constants.WORKSPACE_FINALIZER in meta.finalizers:
        return Step(done=True)
    # A merge patch replaces the list: the resourceVersion keeps others' finalizers from being lost.
    finalizers = [*meta.finalizers, constants.WORKSPACE_FINALIZER]
    return Step(
        done=False,
        actions=(
            Patch(
                workspace_ref(meta), meta.resource_version, {"metadata": {"finalizers": finalizers}}
            ),
        ),
    )
