"""After the machine is gone: its Node, then our finalizer on the claim. The order is the point."""

from __future__ import annotations

from kaito.api.meta import ObjectMeta, ObjectRef
from kaito.constants import TERMINATION_FINALIZER
from kaito.reconcilers.actions import Action, Delete, Event, RemoveFinalizer
from kaito.reconcilers.chain import Step
from kaito.reconcilers.kinds import NODES
from kaito.reconcilers.machine.state import State


def node_removal(state: State) -> Step:
    """Nodes deleted and let go: nothing is left for the finalizer on them to protect."""
    actions: list[Action] = []
    for node in state.nodes:
        ref = NODES.ref(node)
        if not node.metadata.is_deleting:
            actions.append(Delete(ref))
        actions += _let_go(ref, node.metadata)
    # The last event of an object may be our own echo (rule G16).
    is_turn = bool(state.nodes) and state.is_absence_proven
    return Step(not state.nodes, tuple(actions), requeue_after=1.0 if is_turn else None)


def finalize(state: State) -> Step:
    """The claim may go."""
    removal = _let_go(state.ref, state.claim.metadata)
    if not removal:
        return Step(True)
    event = Event("Normal", "Terminated", _outcome(state), action="Terminate")
    return Step(True, (event, *removal))


def _outcome(state: State) -> str:
    instance = state.instance
    if instance is not None and not instance.is_ours:
        return f"no machine is left; agent pool {instance.name} is not ours and stays as it is"
    return "the machine and its Node are gone" if state.claim.node_name else "no machine is left"


def _let_go(ref: ObjectRef, meta: ObjectMeta) -> tuple[Action, ...]:
    if TERMINATION_FINALIZER not in meta.finalizers:
        return ()
    index = meta.finalizers.index(TERMINATION_FINALIZER)
    return (RemoveFinalizer(ref, TERMINATION_FINALIZER, index),)
