"""The workload that serves the model, and whether it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito.api.conditions import Condition, ConditionType, Status
from kaito.api.meta import Owned
from kaito.reconcilers.actions import Action
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.manifests.deployment import deployment
from kaito.reconcilers.workspace.slots import fill
from kaito.reconcilers.workspace.state import State
from kaito.reconcilers.workspace.writes import write


def inference(state: State) -> Step:
    """Owner of InferenceReady, which is what the Deployment's status shows and nothing else."""
    if state.is_refused or state.workspace.inference is None:
        return Step(done=not state.is_refused, drops=(ConditionType.INFERENCE_READY,))
    return Step(done=True, actions=_write(state), conditions=(observed(state),))


def _write(state: State) -> tuple[Action, ...]:
    # A Workspace with faults goes on with what it has: of an unknown preset there is no manifest.
    if state.served is None or state.preset is None:
        return ()
    desired = deployment(state, state.preset, state.served)
    return write(desired, state.deployment, state.uid)


def observed(state: State) -> Condition:
    """True only when the rollout of the newest generation is complete and every replica serves."""
    live = state.deployment
    if live is None:
        if any(not slot.is_ready for slot in fill(state)[0]):
            return _condition(
                "False", "WaitingForNodes", "the model starts when its nodes are ready"
            )
        return _condition("False", "WorkspaceInferencePending", "the deployment is being created")
    spec, status = _mapping(live.body, "spec"), _mapping(live.body, "status")
    want = state.resource.count
    seen = tuple(
        int(status.get(k, 0)) for k in ("replicas", "updatedReplicas", "availableReplicas")
    )
    is_current = int(status.get("observedGeneration", 0)) >= live.metadata.generation
    if is_current and spec.get("replicas") == want and seen == (want, want, want):
        return _condition(
            "True", "WorkspaceInferenceStatusSuccess", "Inference has been deployed successfully"
        )
    if is_current and (stuck := _stuck(live, status)):
        return _condition("False", "WorkspaceInferenceStatusFailed", stuck)
    available = seen[2] if is_current else 0
    return _condition(
        "False",
        "WorkspaceInferencePending",
        f"deployment {live.metadata.name}: {available} of {want} replicas serve",
    )


def _stuck(live: Owned, status: Mapping[str, Any]) -> str:
    """Why the Deployment controller gave up waiting; empty while it has not."""
    return next(
        (
            f"deployment {live.metadata.name} is not progressing: {c.get('message', '')}"
            for c in status.get("conditions") or ()
            if c.get("type") == "Progressing" and c.get("status") == "False"
        ),
        "",
    )


def _mapping(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = body.get(key)
    return found if isinstance(found, Mapping) else {}


def _condition(status: Status, reason: str, message: str) -> Condition:
    return Condition(ConditionType.INFERENCE_READY, status, reason, message)
