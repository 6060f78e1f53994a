"""Why a claim is no further, and how that is said. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kaito.api import reasons
from kaito.api.conditions import Condition, ConditionType
from kaito.api.meta import ConditionView
from kaito.reconcilers.workspace.state import OwnClaim

_UNDER_WAY: Final = frozenset(
    {
        "",
        "AwaitingReconciliation",
        "ClusterBusy",
        "Creating",
        "Launching",
        "MachineNotLaunched",
        "NodeClaimNotLaunched",
        "NotLaunched",
        "NotRegistered",
        "OperationInProgress",
        "OperationPreempted",
        "Throttled",
        "NodeNotFound",
        "NodeNotReady",
        "StartupTaintsExist",
        "KnownEphemeralTaintsExist",
        "ResourceNotRegistered",
    }
)
_DEPENDENTS: Final = ("Launched", "Registered", "Initialized")
_REFUSED: Final = "TerminationDiagnosis"
_NAMED: Final = 5
"""Machines that one text names at most."""


@dataclass(frozen=True, slots=True)
class Cause:
    """The deepest reason why a claim is no further.

    ``failed``: it is not just a matter of time. ``has_remedy``: the message says what to do, with
    the names and numbers of this very case.
    """

    reason: str
    message: str
    failed: bool
    has_remedy: bool = False


def cause(claim: OwnClaim) -> Cause | None:
    """A diagnosis, then Launched, Registered, Initialized: the first that is not well.

    A diagnosis is there for as long as the last launch was refused, or the end of the machine that
    has to go before it. It comes first because MachineLaunched carries a text that tools compare
    whole (facts P1.12). A real error beats a word of progress further up. While the next try runs,
    the last one's refusal is still told and is no failure any more.
    """
    diagnosis = _condition(claim, "LaunchDiagnosis") or _condition(claim, _REFUSED)
    launched = _dependent(claim, "Launched")
    if diagnosis is not None and diagnosis.reason and claim_status(claim, "Launched") != "True":
        is_tried = launched is not None and launched.reason == "Creating"
        failed = diagnosis.reason not in _UNDER_WAY and not is_tried
        return Cause(diagnosis.reason, diagnosis.message, failed, has_remedy=True)
    found = [c for t in _DEPENDENTS if (c := _dependent(claim, t)) and c.status != "True"]
    if not found:
        return None
    deepest = next((c for c in found if c.reason not in _UNDER_WAY), found[0])
    return Cause(deepest.reason, deepest.message, deepest.reason not in _UNDER_WAY)


def leaving(claim: OwnClaim) -> str:
    """Name of a claim that is being deleted, and why it is still there, with what to do about it.

    LaunchDiagnosis does not count: what kept a machine from being made does not keep it from being
    given back.
    """
    found = _condition(claim, _REFUSED) if is_refused(claim) else _condition(claim, "Ready")
    is_why = found is not None and (found.type == _REFUSED or found.reason == "Terminating")
    why = found.message.rstrip(". ") if found is not None and is_why else ""
    return f"{claim.metadata.name} ({why})" if why else claim.metadata.name


def is_refused(claim: OwnClaim) -> bool:
    """The cloud does not take its machine back."""
    found = _condition(claim, _REFUSED)
    return found is not None and found.status == "True"


def claim_status(claim: OwnClaim, dependent: str) -> str:
    """Status of ``Launched``, ``Registered`` or ``Initialized``; empty when it is not told."""
    found = _dependent(claim, dependent)
    return found.status if found is not None else ""


def told(what: str, reason: str, message: str, *, has_remedy: bool = False) -> str:
    """Who, why and what to do, as one text; the reason itself stands beside it in the condition."""
    text = f"{what}: {message or reason}"
    remedy = "" if has_remedy else reasons.remedy(reason)
    return f"{text.rstrip('. ')}. {remedy}" if remedy else text


def failed_machine(name: str, reason: str) -> Condition:
    """MachineReady, in short: ResourceReady has the whole text."""
    text = f"machine {name}: {reason}"
    return Condition(ConditionType.MACHINE_READY, "False", "machineFailedCreation", text)


def few(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _condition(claim: OwnClaim, type_: str) -> ConditionView | None:
    return next((c for c in claim.conditions if c.type == type_), None)


def _dependent(claim: OwnClaim, name: str) -> ConditionView | None:
    """``MachineLaunched`` of a Machine, ``Launched`` of a NodeClaim."""
    return _condition(claim, f"Machine{name}") or _condition(claim, name)
