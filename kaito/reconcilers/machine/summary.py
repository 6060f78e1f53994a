"""What a pass tells: conditions settled with those on the claim, Ready last, Events of transitions.

A Machine's list has a merge of its own (facts P1.7d): lastTransitionTime moves when *any* field of
a condition changes, and there is no observedGeneration. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from kaito.api.conditions import Condition
from kaito.api.meta import ConditionView
from kaito.api.views import is_ready
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Event
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.words import (
    DEPENDENTS,
    DIAGNOSIS,
    INITIALIZED,
    LAUNCHED,
    READY,
    REGISTERED,
    TERMINATION_DIAGNOSIS,
)

_MILESTONES: Final[Mapping[str, tuple[str, str]]] = {
    LAUNCHED: ("Launched", "the machine exists"),
    REGISTERED: ("Registered", "the Node has joined the cluster"),
    INITIALIZED: ("Initialized", "the Node is ready for pods"),
}


def settle(
    state: State, current: Sequence[Condition], *, now: str, drops: Collection[str] = ()
) -> tuple[ConditionView, ...]:
    """The full list to write, sorted by type. Types nobody spoke of stay; Ready is summed up."""
    merged = {c.type: c for c in state.claim.conditions if c.type not in drops}
    for condition in current:
        _put(merged, condition, now)
    if all(c.type != READY for c in current):
        _put(merged, _ready(state, merged), now)
    return tuple(merged[type_] for type_ in sorted(merged))


def on_wire(conditions: Sequence[ConditionView]) -> list[dict[str, str]]:
    """As a Machine's status has them; empty fields are left out, as the original does."""
    return [
        {key: value for key, value in _fields(condition).items() if value}
        for condition in conditions
    ]


def milestones(before: Sequence[ConditionView], after: Sequence[ConditionView]) -> tuple[str, ...]:
    """Dependent conditions that turned True in this pass."""
    was = {c.type for c in before if c.status == "True"}
    return tuple(
        c.type for c in after if c.type in _MILESTONES and c.status == "True" and c.type not in was
    )


def transition_events(
    before: Sequence[ConditionView], after: Sequence[ConditionView]
) -> tuple[Event, ...]:
    """What ``kubectl describe`` is to tell of this pass's transitions."""
    events = [Event("Normal", *_MILESTONES[type_]) for type_ in milestones(before, after)]
    was_ready = any(c.type == READY and c.status == "True" for c in before)
    ready = next((c for c in after if c.type == READY), None)
    if was_ready and ready is not None and ready.reason == "NodeNotReady":
        events.append(Event("Warning", "NodeNotReady", ready.message))
    return tuple(events)


def phase(state: State, after: Sequence[ConditionView]) -> str:
    """Where the claim is, from a closed set: a metric's label."""
    if state.claim.metadata.is_deleting:
        return "terminate"
    status = {c.type: c.status for c in after}
    if status.get(READY) == "True":
        return "ready"
    if status.get(LAUNCHED) != "True":
        return "launch_failed" if status.get(LAUNCHED) == "False" else "launch"
    if status.get(REGISTERED) != "True":
        return "register"
    return "initialize" if status.get(INITIALIZED) != "True" else "not_ready"


def _put(merged: dict[str, ConditionView], condition: Condition, now: str) -> None:
    """Facts P1.7: severity ``Info`` on what Ready is not made of; no change keeps the time."""
    old = merged.get(condition.type)
    severity = "Info" if condition.type in (DIAGNOSIS, TERMINATION_DIAGNOSIS) else ""
    new = ConditionView(
        type=condition.type,
        status=condition.status,
        reason=condition.reason,
        message=condition.message,
        last_transition_time=now if old is None else old.last_transition_time,
        severity=severity,
    )
    if old is not None and new != old:
        new = msgspec.structs.replace(new, last_transition_time=now)
    merged[condition.type] = new


def _ready(state: State, merged: Mapping[str, ConditionView]) -> Condition:
    """Facts P1.7(c): newest False dependent, else newest Unknown, else missing, else the Node."""
    if state.claim.metadata.is_deleting:
        refused = merged.get(TERMINATION_DIAGNOSIS)
        message = _leaving(state) if refused is None else refused.message
        return Condition(READY, "False", "Terminating", message)
    found = [merged[type_] for type_ in DEPENDENTS if type_ in merged]
    for status in ("False", "Unknown"):
        deciding = [c for c in found if c.status == status]
        if deciding:
            # Of equally new ones the first in order: it is what the others wait for.
            newest = max(deciding, key=lambda c: c.last_transition_time)
            return Condition(READY, newest.status, newest.reason, newest.message)  # type: ignore[arg-type]  # one of the two above
    if len(found) < len(DEPENDENTS):
        return Condition(READY, "Unknown", "AwaitingReconciliation", "")
    node = state.node
    if node is None:
        return Condition(READY, "False", "NodeNotReady", "Node is not in the cluster")
    if not is_ready(node):
        return Condition(READY, "False", "NodeNotReady", "Node status is NotReady")
    return Condition(READY, "True", "")


def _leaving(state: State) -> str:
    instance = state.instance
    if state.is_absence_proven:
        return "the machine is gone"
    if instance is None or not instance.is_ours:
        return "waits for the cloud's word that the machine is gone"
    if instance.state is InstanceState.DELETING:
        return f"agent pool {instance.name} is being deleted"
    if state.pods is None:
        return f"the pods on its Node have to leave and cannot be listed: {state.pods_trouble}"
    return "the machine is being given back"


def _fields(condition: ConditionView) -> dict[str, str]:
    return {
        "type": condition.type,
        "status": condition.status,
        "severity": condition.severity,
        "lastTransitionTime": condition.last_transition_time,
        "reason": condition.reason,
        "message": condition.message,
    }
