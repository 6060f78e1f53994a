"""One address for the model, whichever pods serve it."""

from __future__ import annotations

from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.manifests import service as manifests
from kaito.reconcilers.workspace.state import State
from kaito.reconcilers.workspace.writes import write


def service(state: State) -> Step:
    """The Service as we want it. Its readiness is the endpoint in the status, no condition."""
    if state.is_refused or state.served is None:
        return Step(done=not state.is_refused)
    desired = manifests.service(state)
    # One label more in the selector, and it selects no pod.
    exact = ("spec", "selector")
    return Step(done=True, actions=write(desired, state.service, state.uid, exact=exact))
