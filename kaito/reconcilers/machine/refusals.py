"""What a claim says after a call for its machine failed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kaito.api import reasons
from kaito.api.conditions import Condition
from kaito.clock import rfc3339
from kaito.errors import CloudError, KaitoError, NameTaken
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Action, Event, Launch, Prove, Terminate
from kaito.reconcilers.chain import Plan
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps import launch
from kaito.reconcilers.machine.words import LAUNCHED, TERMINATION_DIAGNOSIS


def unsent_launch(state: State, plan: Plan, error: KaitoError) -> Plan:
    """The launch never reached the cloud: nothing is being created."""
    return spoken(plan, launch.unsent(state, error)) if _speaks_of_launch(plan) else plan


def launch_events(actions: Sequence[Action], unsent: Sequence[Action]) -> tuple[Event, ...]:
    """Tells of the launches that were sent."""
    return tuple(
        launch.launching_event(action.request)
        for action in actions
        if isinstance(action, Launch) and action not in unsent
    )


def refused_deletion(
    state: State, plan: Plan, error: CloudError | NameTaken, *, wait: float
) -> Plan:
    """The machine is not taken back: why, what helps, and when it is asked for again."""
    remedy = error.remedy if isinstance(error, CloudError) else reasons.remedy(error.reason)
    cause = " ".join(f"{part.rstrip('.')}." for part in (str(error), remedy) if part)
    text = f"{cause} The next try is at {rfc3339(state.now + wait)}."
    told = [Condition(TERMINATION_DIAGNOSIS, "True", error.reason, text)]
    if not state.claim.metadata.is_deleting and state.gate is None:
        told.append(Condition(LAUNCHED, "Unknown", error.reason, text))
    return spoken(plan, told)


def without_old_refusal(state: State, plan: Plan) -> Plan:
    """All that was asked in this pass was accepted: is what was told of an earlier one over?"""
    has_asked = any(isinstance(action, Terminate | Prove) for action in plan.actions)
    instance = state.instance
    is_going = instance is not None and instance.state is InstanceState.DELETING
    is_open = state.claim.metadata.is_deleting or instance is not None
    if is_open and not has_asked and not is_going:
        return plan
    return replace(plan, drops=(*plan.drops, TERMINATION_DIAGNOSIS))


def _speaks_of_launch(plan: Plan) -> bool:
    return any(condition.type == LAUNCHED for condition in plan.conditions)


def spoken(plan: Plan, told: Sequence[Condition]) -> Plan:
    """The plan with these conditions in place of its own of the same types."""
    types = {condition.type for condition in told}
    others = (condition for condition in plan.conditions if condition.type not in types)
    return replace(plan, conditions=(*others, *told))
