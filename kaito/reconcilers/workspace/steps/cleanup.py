"""The Workspace is being deleted: workload, then nodes, then our finalizer."""

from __future__ import annotations

from typing import Final

from kaito import constants
from kaito.api.conditions import Condition, ConditionType
from kaito.api.meta import ObjectRef, Owned
from kaito.reconcilers.actions import Action, Delete, Patch, RemoveFinalizer
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.causes import few, is_refused, leaving
from kaito.reconcilers.workspace.naming import node_ref, workspace_ref
from kaito.reconcilers.workspace.state import State

_REASON: Final = "workspaceDeleted"
_DELETED: Final = "workspace is being deleted"


def stop_workload(state: State) -> Step:
    """Ask for the workload's end, and say so. Always done: claims go whatever it answers (G15)."""
    return Step(
        done=True,
        actions=(
            *_delete("apps/v1", "Deployment", state.deployment),
            *_delete("v1", "Service", state.service),
        ),
        conditions=(
            Condition(ConditionType.WORKSPACE_DELETING, "True", _REASON, _waits(state)),
            Condition(ConditionType.RESOURCE_READY, "False", _REASON, _DELETED),
            Condition(ConditionType.INFERENCE_READY, "False", _REASON, _DELETED),
        ),
    )


def release_claims(state: State) -> Step:
    """Delete every claim, of both kinds; done when the last is gone, its machine with it."""
    return Step(
        done=not state.claims,
        actions=tuple(Delete(c.ref) for c in state.claims if not c.metadata.is_deleting),
    )


def release_nodes(state: State) -> Step:
    """Take our mark off Nodes that stay: those that no claim made (rule G2)."""
    marked: list[Action] = [
        Patch(
            node_ref(node.metadata),
            node.metadata.resource_version,
            {"metadata": {"labels": {constants.LABEL_WORKSPACE_UID: None}}},
        )
        for node in state.nodes.values()
        if node.metadata.labels.get(constants.LABEL_WORKSPACE_UID) == state.uid
        and not node.metadata.is_deleting
        and constants.LABEL_MACHINE_TYPE not in node.metadata.labels
    ]
    return Step(done=not marked, actions=tuple(marked))


def remove_finalizer(state: State) -> Step:
    """Let the Workspace go. Ours only: others' finalizers are their own business."""
    meta = state.workspace.metadata
    if constants.WORKSPACE_FINALIZER not in meta.finalizers:
        return Step(done=True)
    index = meta.finalizers.index(constants.WORKSPACE_FINALIZER)
    return Step(
        done=True,
        actions=(RemoveFinalizer(workspace_ref(meta), constants.WORKSPACE_FINALIZER, index),),
    )


def _waits(state: State) -> str:
    """Which machines are still there and why; those that the cloud refuses to take first."""
    if not state.claims:
        return _DELETED
    claims = sorted(state.claims, key=lambda c: (not is_refused(c), c.metadata.name))
    each = few([leaving(claim) for claim in claims])
    still = "1 machine is" if len(claims) == 1 else f"{len(claims)} machines are"
    return f"{_DELETED}; {still} still there: {each}"


def _delete(api_version: str, kind: str, found: Owned | None) -> tuple[Delete, ...]:
    if found is None or found.metadata.is_deleting:
        return ()
    meta = found.metadata
    return (Delete(ObjectRef(api_version, kind, meta.namespace, meta.name, meta.uid)),)
