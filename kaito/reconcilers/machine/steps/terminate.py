"""The machine goes: asked for by the claim's name, in every phase, until a list shows it gone."""

from __future__ import annotations

from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Action, Event, Terminate
from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine.state import State


def terminate(state: State) -> Step:
    """Done only when absence is proven; a pool that is not ours was never this claim's."""
    instance = state.instance
    if state.is_absence_proven or (instance is not None and not instance.is_ours):
        return Step(True)
    if instance is None:
        return Step(False, requeue_after=state.absence_provable_in or None)
    if state.is_awaited or instance.state is InstanceState.DELETING:
        return Step(False)
    is_busy = instance.state in (InstanceState.CREATING, InstanceState.BUSY)
    note = f"asks for the deletion of agent pool {instance.name} ({instance.raw_state})"
    actions: list[Action] = []
    if is_busy:
        what = f"asks for the end of what runs on agent pool {instance.name}"
        actions.append(Event("Normal", "Aborting", what, action="Terminate"))
    actions += [
        Event("Normal", "Terminating", note, action="Terminate"),
        Terminate(state.ref, instance.claim_uid, abort=is_busy),
    ]
    return Step(False, tuple(actions))
