"""From a machine to its Node: bound to the claim once, by marks on the Node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kaito import constants
from kaito.api.conditions import Condition
from kaito.api.views import Node
from kaito.reconcilers.actions import Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.kinds import NODES
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.words import LABEL_AZURE_ZONE, REGISTERED


def registration(state: State) -> Step:
    """Exactly one Node, marked; then the claim carries its name (``status_fields``)."""
    if not state.is_launched:
        return _not_yet("MachineNotLaunched", "Machine is not launched")
    joined, node = state.joined, state.node
    if len(joined) > 1:
        return _not_yet("MultipleNodesFound", "Invariant violated, machine matched multiple nodes")
    if node is None:
        if state.was_registered:  # a lost Node is told by Ready; this one happened
            return Step(False, conditions=(Condition(REGISTERED, "True", ""),))
        return _not_yet("NodeNotFound", "Node not registered with cluster")
    if not is_marked(state, node):
        # The echo of our own patch wakes nobody (rule G16).
        step = _not_yet("NodeNotFound", "Node not registered with cluster")
        return Step(False, (_mark(state, node),), step.conditions, requeue_after=0.0)
    labels = _claim_labels(state, node)
    actions = (Patch(state.ref, _version(state), {"metadata": {"labels": labels}}),)
    return Step(True, actions if labels else (), (Condition(REGISTERED, "True", ""),))


def status_fields(state: State) -> dict[str, Any]:
    """What the claim's status copies from its Node, in the same write as Ready (facts P1.10)."""
    node = state.node
    if node is None or not is_marked(state, node):
        return {}
    return {
        "nodeName": node.metadata.name,
        "providerID": node.spec.provider_id,
        "capacity": dict(node.status.capacity),
        "allocatable": dict(node.status.allocatable),
    }


def is_marked(state: State, node: Node) -> bool:
    """The Node is bound to this claim: finalizer, owner and label, as the cache has it."""
    meta = node.metadata
    return (
        constants.TERMINATION_FINALIZER in meta.finalizers
        and any(owner.uid == state.ref.uid for owner in meta.owner_references)
        and meta.labels.get(constants.LABEL_REGISTERED) == "true"
    )


def _mark(state: State, node: Node) -> Patch:
    """One patch: the marks, and the claim's labels that the cloud did not carry (facts W31)."""
    meta, ref = node.metadata, state.ref
    finalizers = [f for f in meta.finalizers if f != constants.TERMINATION_FINALIZER]
    others = [
        {
            "apiVersion": owner.api_version,
            "kind": owner.kind,
            "name": owner.name,
            "uid": owner.uid,
            "controller": owner.controller,
            "blockOwnerDeletion": owner.block_owner_deletion,
        }
        for owner in meta.owner_references
        if owner.uid != ref.uid
    ]
    ours = {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "name": ref.name,
        "uid": ref.uid,
        "blockOwnerDeletion": True,
    }
    missing = {k: v for k, v in state.claim.metadata.labels.items() if k not in meta.labels}
    body = {
        "metadata": {
            "finalizers": [*finalizers, constants.TERMINATION_FINALIZER],
            "ownerReferences": [*others, ours],
            "labels": {**missing, constants.LABEL_REGISTERED: "true"},
        }
    }
    return Patch(NODES.ref(node), meta.resource_version, body)


def _claim_labels(state: State, node: Node) -> Mapping[str, str]:
    """Labels the claim's columns and callers read, where they are missing (facts P1.3, P3.6)."""
    found = node.metadata.labels
    wanted = {
        constants.LABEL_INSTANCE_TYPE: found.get(constants.LABEL_INSTANCE_TYPE),
        constants.LABEL_MACHINE_TYPE: found.get(constants.LABEL_MACHINE_TYPE),
        LABEL_AZURE_ZONE: found.get(constants.LABEL_ZONE),
    }
    have = state.claim.metadata.labels
    return {key: value for key, value in wanted.items() if value and key not in have}


def _version(state: State) -> str:
    return state.claim.metadata.resource_version


def _not_yet(reason: str, message: str) -> Step:
    return Step(False, conditions=(Condition(REGISTERED, "False", reason, message),))
