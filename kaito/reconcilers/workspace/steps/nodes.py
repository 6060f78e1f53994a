"""Ask for the nodes that are missing, mark them as this Workspace's, and say how far they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kaito import constants
from kaito.api.conditions import Condition, ConditionType, Status
from kaito.api.validation import reserved_keys
from kaito.api.views import Node
from kaito.api.workspace import MAX_NODES
from kaito.clock import rfc3339
from kaito.reconcilers.actions import Action, Create, Patch
from kaito.reconcilers.chain import Step
from kaito.reconcilers.workspace.causes import cause, failed_machine, few, leaving, told
from kaito.reconcilers.workspace.manifests.machine import machine
from kaito.reconcilers.workspace.naming import node_ref
from kaito.reconcilers.workspace.slots import Slot, ask_wait, fill, next_ask, progress, well_wait
from kaito.reconcilers.workspace.state import OwnClaim, State


def nodes(state: State) -> Step:
    """Owner of MachineReady and, once validation let it pass, of ResourceReady.

    Not done holds the first creation of the workload and nothing else: with one already there, a
    lost node stops neither the correction of drift nor the report (rule G18).
    """
    if state.is_refused:
        return Step(done=False, drops=(ConditionType.MACHINE_READY,))
    slots, extra = fill(state)
    # One that owns something from before the limit keeps it; nothing is added (rule G19).
    is_over = state.resource.count > MAX_NODES
    waits = {slot.index: None if is_over else ask_wait(slot, state) for slot in slots}
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
    machines, resource = _progress(state, slots)
    notes = _notes(state, extra)
    if notes:
        text = " ".join([resource.message.rstrip(". ") + ".", *notes])
        resource = replace(resource, message=text)
    return machines, resource


def _notes(state: State, extra: Sequence[OwnClaim]) -> list[str]:
    """What is odd and holds nothing, a sentence each (rules G1 and G7)."""
    notes = []
    if extra:
        names = few([c.metadata.name for c in extra])
        notes.append(f"Beyond resource.count, and kept: {names}.")
    if ignored := reserved_keys(state.resource.label_selector):
        notes.append(
            f"Not used of resource.labelSelector: {few(ignored)}, as the operator sets the keys"
            f" under {' and '.join(constants.RESERVED_LABEL_PREFIXES)} itself."
        )
    return notes


def _progress(state: State, slots: Sequence[Slot]) -> tuple[Condition, Condition]:
    unready = [slot for slot in slots if not slot.is_ready]
    if not unready:
        return (
            _machine(
                "True",
                "installNodePluginsSuccess",
                "machines plugins have been installed successfully",
            ),
            _resource("True", "workspaceResourceStatusSuccess", "workspace resource is ready"),
        )
    for slot in unready:
        found = cause(slot.claim) if slot.claim else None
        if found is not None and found.failed and slot.is_kept:
            text = told(
                f"machine {_name(slot)}", found.reason, found.message, has_remedy=found.has_remedy
            )
            return failed_machine(_name(slot), found.reason), _resource("False", found.reason, text)
    for slot in unready:
        phase, reason = progress(slot)
        if phase == "NotReady":
            return _not_ready(slot, reason)
    text = "; ".join(_waits(state, unready))
    only_gpu = all(slot.lacks_gpu for slot in unready)
    is_removal = all(slot.claim is not None and not slot.is_kept for slot in unready)
    short = f"{'removing' if is_removal else 'creating'} {len(unready)} machines"
    return (
        _machine("Unknown", "CreateMachinePending", short),
        _resource("False", "WaitingForGpu" if only_gpu else "WaitingForNodes", text),
    )


def _not_ready(slot: Slot, reason: str) -> tuple[Condition, Condition]:
    node = slot.claim.node_name if slot.claim else ""
    now = "has left the cluster" if slot.node is None else "was Ready before and is not now"
    text = told(f"node {node} of machine {_name(slot)}", reason, f"it {now}")
    return (
        _machine("False", "checkMachineStatusFailed", f"machine {_name(slot)}: {reason}"),
        _resource("False", reason, text),
    )


def _waits(state: State, unready: Sequence[Slot]) -> Iterator[str]:
    """What is waited for, in groups: machines on their way, on their way out, and to come."""
    is_over = state.resource.count > MAX_NODES
    going = [s.claim for s in unready if s.claim is not None and not s.is_kept]
    empty = [] if is_over else [s for s in unready if s.claim is None]
    later = [s for s in empty if ask_wait(s, state)]
    coming = [s for s in unready if s.is_kept] + [s for s in empty if not ask_wait(s, state)]
    if coming:
        each = few([_progress_of(s) for s in coming])
        yield f"creating {len(coming)} machines: {each}"
    if going:
        each = few([leaving(claim) for claim in going])
        yield f"waiting for machine{_s(going)} {each} to be gone"
        if not is_over:
            yield f"{'it is' if len(going) == 1 else 'they are'} then asked for again"
    if later:
        each = few([f"{_name(s)} at {rfc3339(next_ask(s, state) or state.now)}" for s in later])
        yield f"machine{_s(later)} gone, to be asked for again: {each}"
    if is_over:
        yield f"no more machines are asked for, as resource.count is over {MAX_NODES}"


def _progress_of(slot: Slot) -> str:
    phase, detail = progress(slot)
    found = cause(slot.claim) if slot.claim else None
    if slot.node is not None:
        detail = f"node {slot.node.metadata.name} {_lacks(slot.node, lacks_gpu=slot.lacks_gpu)}"
    elif found is not None and found.message:
        detail = found.message
    word = "Pending" if slot.claim is None else phase
    return f"{_name(slot)} {word}" + (f" ({detail})" if detail else "")


def _lacks(node: Node, *, lacks_gpu: bool) -> str:
    if node.metadata.is_deleting:
        return "is being deleted"
    return f"offers no {constants.RESOURCE_GPU} yet" if lacks_gpu else "is not Ready yet"


def _name(slot: Slot) -> str:
    return slot.claim.metadata.name if slot.claim else slot.name


def _s(items: Sequence[object]) -> str:
    return "" if len(items) == 1 else "s"


def _machine(status: Status, reason: str, message: str) -> Condition:
    return Condition(ConditionType.MACHINE_READY, status, reason, message)


def _resource(status: Status, reason: str, message: str) -> Condition:
    return Condition(ConditionType.RESOURCE_READY, status, reason, message)
