"""The machine goes: asked for by the claim's name, in every phase, until its absence is proven.

A list may be behind the cloud, so a machine that it does not show is looked for live (rule G8).
"""

from __future__ import annotations

from dataclasses import replace

from kaito.provisioner.asks import Call
from kaito.provisioner.interface import Instance, InstanceState
from kaito.reconcilers.actions import Action, Event, Prove, Terminate
from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.words import DIAGNOSIS


def terminate(state: State) -> Step:
    """Done only when absence is proven; a pool that is not ours was never this claim's."""
    if state.is_absence_proven:
        return Step(True)
    # Nothing is launched any more: a time for the next try would be a lie.
    return replace(_give_back(state), drops=(DIAGNOSIS,))


def _give_back(state: State) -> Step:
    if state.is_awaited or state.listed_at is None:
        return Step(False)
    instance = state.instance
    if instance is None or not instance.is_ours:
        return _unlisted(state)
    if instance.state is InstanceState.DELETING:
        return Step(False)
    return _listed(state, instance)


def _unlisted(state: State) -> Step:
    if landing := state.landing_seconds:
        return Step(False, requeue_after=landing)
    if not state.farewell.is_answered:
        if wait := state.unshown.get(Call.TERMINATE):
            return Step(False, requeue_after=wait)
        return Step(False, (Terminate(state.ref, None, is_settled=False),))
    if wait := max(state.unshown.get(c, 0.0) for c in (Call.TERMINATE, Call.PROVE)):
        return Step(False, requeue_after=wait)
    return Step(False, (Prove(state.ref),))


def _listed(state: State, instance: Instance) -> Step:
    if wait := state.unshown.get(Call.TERMINATE):
        return Step(False, requeue_after=wait)
    is_settled = instance.state in (InstanceState.READY, InstanceState.FAILED)
    note = f"asks for the deletion of agent pool {instance.name} ({instance.raw_state})"
    actions: list[Action] = []
    if not is_settled:
        what = f"asks for the end of what still runs on agent pool {instance.name}"
        actions.append(Event("Normal", "Aborting", what, action="Terminate"))
    actions += [
        Event("Normal", "Terminating", note, action="Terminate"),
        Terminate(state.ref, instance.claim_uid, is_settled=is_settled),
    ]
    return Step(False, tuple(actions))
