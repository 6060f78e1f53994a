"""Our finalizer on the claim, before anything is asked of a cloud."""

from __future__ import annotations

from kaito.constants import TERMINATION_FINALIZER
from kaito.reconcilers.actions import Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine.state import State


def finalizer(state: State) -> Step:
    """Without it a claim could go while its machine is paid for: the pass ends with adding it."""
    meta = state.claim.metadata
    if TERMINATION_FINALIZER in meta.finalizers:
        return Step(done=True)
    body = {"metadata": {"finalizers": [*meta.finalizers, TERMINATION_FINALIZER]}}
    # The echo of our own write wakes nobody (rule G16): ask for the next pass here.
    return Step(False, (Patch(state.ref, meta.resource_version, body),), requeue_after=0.0)
