"""Ask for the nodes that are missing, mark them as this Workspace's, and say how far they are."""

from __future__ import annotations

from collections.abc import Sequence

from kaito import constants
from kaito.api.conditions import Condition, ConditionType, Status
from kaito.clock import rfc3339
from kaito.reconcilers.actions import Action, Create, Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.causes import cause, told
from kaito.reconcilers.workspace.manifests.machine import machine
from kaito.reconcilers.workspace.naming import node_ref
from kaito.reconcilers.workspace.slots import (
    Slot,
    ask_wait,
    fill,
    next_ask,
    progress,
    well_wait,
)
from kaito.reconcilers.workspace.state import OwnClaim, State


def nodes(state: State) -> Step:
    """Owner of MachineReady and, once validation let it pass, of ResourceReady.

    Not done holds the first creation of the workload and nothing else: with one already there, a
    lost node stops neither the correction of drift nor the report (rule G18).
    """
    if state.is_refused:
        return Step(done=False, drops=(ConditionType.MACHINE_READY,))
    slots, extra = fill(state)
    waits = {slot.index: ask_wait(slot, state) for slot in slots}
    asks = [
        Create(machine(state, slot.name), state.uid) for slot in slots if waits[slot.index] == 0.0
    ]
    timers = [w for slot in slots for w in (waits[slot.index], well_wait(slot, state)) if w]
    return Step(
        done=all(slot.is_ready for slot in slots) or state.deployment is not None,
        actions=(*_marks(slots, state), *asks),
        conditions=_conditions(state, slots, extra),
        requeue_after=min(timers, default=None),
    )


def _marks(slots: Sequence[Slot], state: State) -> tuple[Action, ...]:
    """Labels that a claim's Node should have from its pool and has not (rule G2).

    A Node with another Workspace's mark is left alone.
    """
    patches: list[Action] = []
    for slot in slots:
        if slot.node is None or slot.node.metadata.is_deleting:
            continue
        meta, missing = slot.node.metadata, {}
        if constants.LABEL_WORKSPACE_UID not in meta.labels:
            missing[constants.LABEL_WORKSPACE_UID] = state.uid
        if slot.wants_gpu and constants.LABEL_ACCELERATOR not in meta.labels:
            missing[constants.LABEL_ACCELERATOR] = "nvidia"
        if missing:
            patches.append(
                Patch(node_ref(meta), meta.resource_version, {"metadata": {"labels": missing}})
            )
    return tuple(patches)


def _conditions(
    state: State, slots: Sequence[Slot], extra: Sequence[OwnClaim]
) -> tuple[Condition, Condition]:
    surplus = (
        f"; beyond resource.count, and kept: {', '.join(c.metadata.name for c in extra)}"
        if extra
        else ""
    )
    unready = [slot for slot in slots if not slot.is_ready]
    if not unready:
        return (
            _machine(
                "True",
                "installNodePluginsSuccess",
                f"machines plugins have been installed successfully{surplus}",
            ),
            _resource(
                "True", "workspaceResourceStatusSuccess", f"workspace resource is ready{surplus}"
            ),
        )
    for slot in unready:
        found = cause(slot.claim) if slot.claim else None
        if found is not None and found.failed:
            text = told(
                f"machine {_name(slot)}",
                found.reason,
                found.message,
                has_remedy=found.has_remedy,
            )
            return (
                _machine("False", "machineFailedCreation", text),
                _resource("False", found.reason, text),
            )
    for slot in unready:
        phase, reason = progress(slot)
        if phase == "NotReady":
            where = slot.claim.node_name if slot.claim else ""
            text = told(f"node {where} of machine {_name(slot)}", reason, "it was ready before")
            return (
                _machine("False", "checkMachineStatusFailed", text),
                _resource("False", reason, text),
            )
    text = f"creating {len(unready)} machines: {', '.join(_progress_of(s, state) for s in unready)}"
    only_gpu = all(slot.node is not None and slot.lacks_gpu for slot in unready)
    return (
        _machine("Unknown", "CreateMachinePending", text + surplus),
        _resource("False", "WaitingForGpu" if only_gpu else "WaitingForNodes", text + surplus),
    )


def _progress_of(slot: Slot, state: State) -> str:
    phase, detail = progress(slot)
    found = cause(slot.claim) if slot.claim else None
    if phase == "Waiting" and (at := next_ask(slot, state)) is not None:
        detail = f"asked for {slot.record.asks} times and gone, next at {rfc3339(at)}"
    elif slot.lacks_gpu and slot.node is not None:
        detail = f"node {slot.node.metadata.name} offers no {constants.RESOURCE_GPU} yet"
    elif slot.node is None and found is not None and found.message:
        detail = found.message
    return f"{_name(slot)} {phase}" + (f" ({detail})" if detail else "")


def _name(slot: Slot) -> str:
    return slot.claim.metadata.name if slot.claim else slot.name


def _machine(status: Status, reason: str, message: str) -> Condition:
    return Condition(ConditionType.MACHINE_READY, status, reason, message)


def _resource(status: Status, reason: str, message: str) -> Condition:
    return Condition(ConditionType.RESOURCE_READY, status, reason, message)
