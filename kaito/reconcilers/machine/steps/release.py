"""Our finalizer off Nodes that nobody will drain: held, they would keep the next VM's name."""

from __future__ import annotations

from kaito import constants
from kaito.api.meta import ObjectRef
from kaito.api.views import Node
from kaito.reconcilers.actions import RemoveFinalizer
from kaito.reconcilers.chain import Step
from kaito.reconcilers.kinds import NODES
from kaito.reconcilers.machine.state import State


def strays(state: State) -> Step:
    """Nodes of this name that an earlier claim left, once no live claim has their uid (G6)."""
    return Step(True, tuple(_release(n, _earlier(state, n)) for n in state.strays if _is_held(n)))


def held(state: State) -> Step:
    """Nodes that someone deletes under a live claim: AKS reimages a VM and its Node comes back."""
    going = (n for n in state.nodes if n.metadata.is_deleting and _is_held(n))
    return Step(True, tuple(_release(n) for n in going))


def _is_held(node: Node) -> bool:
    return constants.TERMINATION_FINALIZER in node.metadata.finalizers


def _earlier(state: State, node: Node) -> ObjectRef:
    ref = state.ref
    uid = node.metadata.labels[constants.LABEL_CLAIM_UID]
    return ObjectRef(ref.api_version, ref.kind, ref.namespace, ref.name, uid)


def _release(node: Node, left_by: ObjectRef | None = None) -> RemoveFinalizer:
    finalizer = constants.TERMINATION_FINALIZER
    index = node.metadata.finalizers.index(finalizer)
    return RemoveFinalizer(NODES.ref(node), finalizer, index, left_by)
