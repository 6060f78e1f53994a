"""Why a claim is no further, and how that is said. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kaito.api import reasons
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
    """LaunchDiagnosis, then Launched, Registered, Initialized: the first that is not well.

    The diagnosis is there for as long as the last launch was refused. It comes first because
    MachineLaunched carries a text that tools compare whole (facts P1.12). A real error beats a word
    of progress further up.
    """
    diagnosis = _condition(claim, "LaunchDiagnosis")
    if diagnosis is not None and diagnosis.reason and claim_status(claim, "Launched") != "True":
        failed = diagnosis.reason not in _UNDER_WAY
        return Cause(diagnosis.reason, diagnosis.message, failed, has_remedy=True)
    found = [c for t in _DEPENDENTS if (c := _dependent(claim, t)) and c.status != "True"]
    if not found:
        return None
    deepest = next((c for c in found if c.reason not in _UNDER_WAY), found[0])
    return Cause(deepest.reason, deepest.message, deepest.reason not in _UNDER_WAY)


def claim_status(claim: OwnClaim, dependent: str) -> str:
    """Status of ``Launched``, ``Registered`` or ``Initialized``; empty when it is not told."""
    found = _dependent(claim, dependent)
    return found.status if found is not None else ""


def told(what: str, reason: str, message: str, *, has_remedy: bool = False) -> str:
    """Who, why and what to do, as one text; the reason itself stands beside it in the condition."""
    text = f"{what}: {message or reason}"
    remedy = "" if has_remedy else reasons.remedy(reason)
    return f"{text.rstrip('. ')}. {remedy}" if remedy else text


def _condition(claim: OwnClaim, type_: str) -> ConditionView | None:
    return next((c for c in claim.conditions if c.type == type_), None)


def _dependent(claim: OwnClaim, name: str) -> ConditionView | None:
    """``MachineLaunched`` of a Machine, ``Launched`` of a NodeClaim."""
    return _condition(claim, f"Machine{name}") or _condition(claim, name)
