"""One pass told: the whole status as it should be, what of it to write, and the Events. Pure.

Derived from the snapshot that was decided on. Of the writes of this pass only refusals count here:
a write that worked shows when the watch brings it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kaito.api.conditions import Condition, ConditionType
from kaito.api.meta import ConditionView
from kaito.api.workspace import NodeSlot, WorkspaceStatus
from kaito.clock import rfc3339
from kaito.errors import (
    ApiError,
    Conflict,
    KaitoError,
    NameTaken,
    NotLeader,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
)
from kaito.reconcilers.actions import Action, Apply, Create, Event
from kaito.reconcilers.chain import Plan
from kaito.reconcilers.status import merge, same
from kaito.reconcilers.workspace.causes import failed_machine, told
from kaito.reconcilers.workspace.slots import fill, record, worker_nodes
from kaito.reconcilers.workspace.state import State
from kaito.reconcilers.workspace.summary import PROGRESS, state_word, summarize


@dataclass(frozen=True, slots=True)
class Refusal:
    """An action that was not carried out, and why."""

    action: Action
    error: KaitoError


_PASSING: Final = (Conflict, NotLeader, ServerUnavailable, TooManyRequests, TransportError)
"""Said to the log, not to the user: the next look settles it, and a condition would flap."""


def report(state: State, plan: Plan, refusals: Sequence[Refusal]) -> dict[str, Any]:
    """The status as it should be, by its wire names; what is empty is left out."""
    before = state.workspace.status
    telling = [r for r in refusals if not isinstance(r.error, _PASSING)]
    conditions = _with_refusals(plan.conditions, telling)
    endpoint = _endpoint(state)
    ready, succeeded = summarize(
        conditions,
        endpoint=endpoint,
        is_deleting=state.workspace.metadata.is_deleting,
        refusal=_sentence(telling[0]) if telling else "",
    )
    slots = () if state.is_refused else fill(state)[0]
    asked = _asked(plan, refusals)
    return _wire(
        WorkspaceStatus(
            observed_generation=state.workspace.metadata.generation,
            endpoint=endpoint,
            state=state_word(ready.status, before.state),
            target_node_count=state.resource.count,
            worker_nodes=worker_nodes(slots),
            nodes=tuple(record(s, state, was_asked=s.name in asked) for s in slots),
        ),
        merge(
            before.conditions,
            (*conditions, ready, succeeded),
            generation=state.workspace.metadata.generation,
            now=rfc3339(state.now),
            drops=plan.drops,
        ),
    )


def changes(before: WorkspaceStatus, after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch of ``status`` from one to the other; empty when nothing is to be written."""
    found = _wire(before, [])
    patch = {key: value for key, value in after.items() if found.get(key) != value}
    if same(before.conditions, after["conditions"]):
        patch.pop("conditions", None)
    return patch | {key: None for key in found if key not in after}


def events(before: Sequence[ConditionView], after: Sequence[Mapping[str, Any]]) -> list[Event]:
    """What ``kubectl describe`` tells: one Event a condition whose status or reason is new.

    MachineReady and the two summaries repeat what the others say, and stay silent; so does a model
    that waits for its nodes.
    """
    known = {c.type: (c.status, c.reason) for c in before}
    found = {c["type"]: c for c in after}
    told_once = {
        Event("Normal" if _is_good(c) else "Warning", c["reason"], c["message"]): None
        for type_ in _TOLD
        if (c := found.get(type_))
        and known.get(type_) != (c["status"], c["reason"])
        and (type_, c["reason"]) != (ConditionType.INFERENCE_READY, "WaitingForNodes")
    }
    return list(told_once)


_TOLD: Final = (
    ConditionType.SPEC_VALID,
    ConditionType.RESOURCE_READY,
    ConditionType.INFERENCE_READY,
    ConditionType.WORKSPACE_DELETING,
)


def _is_good(condition: Mapping[str, Any]) -> bool:
    return bool(condition["status"] == "True") or condition["reason"] in PROGRESS


def _asked(plan: Plan, refusals: Sequence[Refusal]) -> frozenset[str]:
    """Names of the claims that this pass asked for. One that was surely not made is no ask (G3)."""
    unmade = [r.action for r in refusals if _surely_unmade(r.error)]
    return frozenset(
        a.manifest["metadata"]["name"]
        for a in plan.actions
        if isinstance(a, Create) and a.manifest["kind"] in _CLAIM_KINDS and a not in unmade
    )


_CLAIM_KINDS: Final = ("Machine", "NodeClaim")


def _surely_unmade(error: KaitoError) -> bool:
    if isinstance(error, ApiError):
        return isinstance(error, Conflict) or 400 <= error.status < 500
    return isinstance(error, NameTaken | NotLeader)


def _with_refusals(
    conditions: Sequence[Condition], refusals: Sequence[Refusal]
) -> tuple[Condition, ...]:
    """Conditions with the refused writes in them. What is observed to be True stays True."""
    told_by: dict[str, Condition] = {}
    for refusal in refusals:
        for condition in _conditions_of(refusal):
            told_by.setdefault(condition.type, condition)
    return tuple(
        told_by[c.type] if c.status != "True" and c.type in told_by else c for c in conditions
    )


def _conditions_of(refusal: Refusal) -> tuple[Condition, ...]:
    if not isinstance(refusal.action, Create | Apply):
        return ()
    text, reason = _sentence(refusal), refusal.error.reason
    if refusal.action.manifest["kind"] in _CLAIM_KINDS:
        name = refusal.action.manifest["metadata"]["name"]
        return (
            failed_machine(name, reason),
            Condition(ConditionType.RESOURCE_READY, "False", reason, text),
        )
    failed = "WorkspaceInferenceStatusFailed"
    return (Condition(ConditionType.INFERENCE_READY, "False", failed, text),)


def _sentence(refusal: Refusal) -> str:
    return told(type(refusal.action).__name__.lower(), refusal.error.reason, str(refusal.error))


def _endpoint(state: State) -> str:
    """Where requests go: the load balancer once it has an address, else the Service's own name."""
    if state.service is None:
        return ""
    status: Any = state.service.body.get("status") or {}
    for entry in (status.get("loadBalancer") or {}).get("ingress") or ():
        if address := entry.get("ip") or entry.get("hostname"):
            return f"http://{address}"
    meta = state.service.metadata
    return f"http://{meta.name}.{meta.namespace}.svc"


def _wire(status: WorkspaceStatus, conditions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "observedGeneration": status.observed_generation,
        "endpoint": status.endpoint,
        "state": status.state,
        "targetNodeCount": status.target_node_count,
        "workerNodes": list(status.worker_nodes),
        "nodes": [_slot(n) for n in status.nodes],
        "conditions": list(conditions),
    }
    return {key: value for key, value in fields.items() if value not in ("", 0, [])}


def _slot(slot: NodeSlot) -> dict[str, Any]:
    return {"slot": slot.slot, **slot.model_dump(by_alias=True, exclude_defaults=True)}
