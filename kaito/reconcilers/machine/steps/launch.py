"""From a claim to a machine that exists: one launch at a time, each after the last one's end."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Final

from kaito import constants
from kaito.api.claim import condition
from kaito.api.conditions import Condition
from kaito.catalog.quantities import whole
from kaito.clock import parse_rfc3339, rfc3339
from kaito.errors import ANSWER_LOST, CloudError, KaitoError
from kaito.provisioner.asks import Call
from kaito.provisioner.interface import Fault, Instance, InstanceState, LaunchRequest, Taint
from kaito.reconcilers.actions import Event, Launch, Patch, Terminate
from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine import gate as gates
from kaito.reconcilers.machine.gate import Gate
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.words import DIAGNOSIS, LAUNCHED

_UNDECIDED: Final = frozenset({"OperationInProgress", "Throttled", "ClusterBusy", ANSWER_LOST})
"""Nothing was refused: the launch waits, or nobody knows yet what became of it (facts P6.2)."""

_SENTINEL_REASON: Final = "InstanceTypeUnavailable"


def launch(state: State) -> Step:
    """The one place that asks for machines. Every PUT is preceded by a list without the pool."""
    instance = state.instance
    if instance is not None and not instance.is_ours and not state.joined:
        return _name_taken(state, instance)
    if state.is_launched:
        return _launched(state)
    if state.listed_at is None:
        if condition(state.claim, LAUNCHED) is not None and not state.cloud_trouble:
            return Step(False)  # just started: what was told still stands
        why = f": {state.cloud_trouble}" if state.cloud_trouble else ""
        return _waiting(state, f"waits for the cloud's first list of instances{why}")
    if instance is None:
        return _launch_when_open(state)
    if not state.owns_instance:
        return _remove(state, instance, "is left from an earlier claim of this name")
    match instance.state:
        case InstanceState.FAILED:
            return _failed(state, instance)
        case InstanceState.DELETING:
            return _waiting(state, f"agent pool {instance.name} is being deleted")
        case _:
            return Step(False, conditions=_creating(state, instance))


def refusal(state: State, error: CloudError) -> Gate:
    """The gate that a refused launch leaves."""
    return _next_gate(state, error, at=state.now)


def gate_patch(state: State, gate: Gate) -> Patch:
    """Writes the gate on the claim."""
    return _annotate(state, gates.write(gate))


def launching_event(request: LaunchRequest) -> Event:
    """Tells of a launch that was sent."""
    note = f"asks for agent pool {request.name} of size {request.instance_type}"
    return Event("Normal", "Launching", note, action="Launch")


def unsent(state: State, error: KaitoError) -> tuple[Condition, ...]:
    """What the claim says when the cloud could not be asked."""
    return _waiting(state, f"nothing was asked of the cloud: {error}").conditions


def failure_event(gate: Gate) -> Event:
    """Tells why, and nothing that differs from one attempt to the next: they are one series."""
    return Event("Warning", "LaunchFailed", _cause(gate), action="Launch")


def is_failure(reason: str) -> bool:
    """The cloud refused, as opposed to: busy, or its answer was lost."""
    return reason not in _UNDECIDED


def told(gate: Gate, *, doing: str = "") -> tuple[Condition, ...]:
    """What the claim says between attempts.

    The one message that callers compare whole stays alone in its condition (facts P1.12).
    doing: what goes on before the next attempt, once its time alone would mislead.
    """
    if not is_failure(gate.reason):
        launched = Condition(LAUNCHED, "Unknown", gate.reason, gate.message)
    else:
        is_sentinel = gate.reason == _SENTINEL_REASON
        message = constants.SKU_UNAVAILABLE_MESSAGE if is_sentinel else gate.message
        launched = Condition(LAUNCHED, "False", "LaunchFailed", message)
    return launched, Condition(DIAGNOSIS, "True", gate.reason, _diagnosis(gate, doing))


def _launched(state: State) -> Step:
    actions = () if state.gate is None else (_annotate(state, None),)
    return Step(True, actions, (Condition(LAUNCHED, "True", ""),), drops=(DIAGNOSIS,))


def _launch_when_open(state: State) -> Step:
    wait_for_list = state.unshown.get(Call.LAUNCH, 0.0)
    is_told = Call.LAUNCH in state.unshown and _is_told_creating(state)
    if state.is_awaited or wait_for_list:
        step = _waiting(state, "waits for the cloud to list the agent pool")
        # A list may be behind our own call: what was told at its success still stands.
        told_now = () if is_told else step.conditions
        return Step(False, conditions=told_now, requeue_after=wait_for_list or None)
    gate = state.gate
    if gate is not None:
        wait = gate.opens_in(state.now, state.claim.metadata.generation)
        if wait is None or wait > 0:
            return Step(False, conditions=told(gate), requeue_after=wait)
        if not state.is_list_newer_than_failure:
            return _waiting(state, "waits for a newer list of instances")
    request = launch_request(state)
    pool = Instance(
        name=request.name,
        state=InstanceState.CREATING,
        raw_state="Creating",
        instance_type=request.instance_type,
        is_ours=True,
        launched_at=request.launched_at,
    )
    # Told as it will be when the cloud accepts: the shell puts a refusal in its place.
    return Step(
        False,
        (Launch(state.ref, request, state.claim.metadata.generation),),
        () if is_told else _creating(state, pool),
    )


def launch_request(state: State) -> LaunchRequest:
    """The order for this claim. What a cloud cannot take of it, its backend refuses."""
    claim = state.claim
    return LaunchRequest(
        name=claim.metadata.name,
        claim_uid=claim.metadata.uid,
        instance_type=claim.instance_type,
        storage_bytes=_storage_bytes(claim.requests.get("storage", 0)),
        labels={constants.LABEL_PROVISIONER_NAME: "default", **claim.metadata.labels},
        taints=tuple(Taint(t.key, t.effect, t.value) for t in claim.taints),
        claim_created_at=parse_rfc3339(claim.metadata.creation_timestamp),
        launched_at=_launch_time(state),
    )


def _storage_bytes(quantity: str | int) -> int:
    try:
        return whole(quantity)
    except (
        ValueError
    ):  # the schema lets 1e999 in; no cloud has such a disk, and its backend says so
        return sys.maxsize


def _launch_time(state: State) -> float:
    """Whole seconds, as the label has them; later than the last failure, to tell them apart."""
    after_failure = 0 if state.gate is None else math.floor(state.gate.at) + 1
    return float(max(math.ceil(state.now), after_failure))


def _failed(state: State, instance: Instance) -> Step:
    """A settled failure before any Node joined: written down, then the pool goes (facts P6.3)."""
    gate = state.gate
    launched_at = instance.launched_at or 0.0
    if gate is None or gate.at < launched_at:
        cause = instance.fault or Fault("CloudError", f"agent pool {instance.name} failed")
        gate = _next_gate(state, cause, at=max(state.now, launched_at))
        return Step(
            False, (gate_patch(state, gate), failure_event(gate)), told(gate), requeue_after=0.0
        )
    return _remove(state, instance, f"failed ({gate.reason})")


def _remove(state: State, instance: Instance, why: str) -> Step:
    step = _waiting(state, f"agent pool {instance.name} {why} and is being deleted")
    wait = state.unshown.get(Call.TERMINATE, 0.0)
    if state.is_awaited or wait or instance.state is InstanceState.DELETING:
        return replace(step, requeue_after=wait or None)
    note = f"agent pool {instance.name} {why}: it is deleted before the next launch"
    is_settled = instance.state in (InstanceState.READY, InstanceState.FAILED)
    return replace(
        step,
        actions=(
            Event("Normal", "Terminating", note, action="Terminate"),
            Terminate(state.ref, instance.claim_uid, is_settled=is_settled),
        ),
    )


def _name_taken(state: State, instance: Instance) -> Step:
    gate = Gate(
        attempt=0,
        in_a_row=0,
        reason="NameTaken",
        code="",
        message=f"an agent pool {instance.name} exists that is not ours; it is left as it is",
        remedy="Delete that agent pool, or delete this claim",
        at=state.now,
        next=None,
        generation=state.claim.metadata.generation,
    )
    return Step(False, conditions=told(gate))


def _waiting(state: State, message: str) -> Step:
    """Between attempts the last cause stays told (facts P6.3); before the first, the wait is."""
    if state.gate is not None:
        return Step(False, conditions=told(state.gate, doing=message))
    return Step(
        False, conditions=(Condition(LAUNCHED, "Unknown", "AwaitingReconciliation", message),)
    )


def _is_told_creating(state: State) -> bool:
    launched = condition(state.claim, LAUNCHED)
    return launched is not None and launched.reason == "Creating"


def _creating(state: State, instance: Instance) -> tuple[Condition, ...]:
    # A start time, never an elapsed one: that would be a write per list (facts P1.11).
    since = f" since {rfc3339(instance.launched_at)}" if instance.launched_at is not None else ""
    message = f"agent pool {instance.name} is {instance.raw_state}{since}"
    creating = Condition(LAUNCHED, "Unknown", "Creating", message)
    if state.gate is None:
        return (creating,)
    diagnosis = _diagnosis(state.gate, "the next is under way")
    return creating, Condition(DIAGNOSIS, "True", state.gate.reason, diagnosis)


def _diagnosis(gate: Gate, doing: str = "") -> str:
    if not gate.attempt:
        return _cause(gate)
    when = "after an edit" if gate.next is None else f"at {rfc3339(gate.next)}"
    return f"{_cause(gate)} Attempt {gate.attempt}; {doing or f'the next is {when}'}."


def _cause(gate: Gate) -> str:
    return " ".join(f"{part.rstrip('.')}." for part in (gate.message, gate.remedy) if part)


def _next_gate(state: State, cause: CloudError | Fault, *, at: float) -> Gate:
    return gates.after(
        cause,
        state.gate,
        now=at,
        generation=state.claim.metadata.generation,
        jitter=state.jitter,
        longest_wait=state.settings.launch_retry_max,
    )


def _annotate(state: State, value: str | None) -> Patch:
    body = {"metadata": {"annotations": {constants.ANNOTATION_LAUNCH_GATE: value}}}
    return Patch(state.ref, state.claim.metadata.resource_version, body)
