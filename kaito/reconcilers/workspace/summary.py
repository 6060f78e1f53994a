"""The overall conditions. Not a step: they are told when the chain is held or failed, too. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kaito.api.conditions import Condition, ConditionType

PROGRESS: Final = frozenset(
    {
        "CreateMachinePending",
        "WaitingForNodes",
        "WaitingForGpu",
        "WorkspaceInferencePending",
        "workspacePending",
        "workspaceDeleted",
    }
)
"""Reasons of a False or Unknown condition that say nothing went wrong."""

# A fault that holds all is in ResourceReady too, in fewer words.
_IN_ORDER: Final = (
    ConditionType.RESOURCE_READY,
    ConditionType.SPEC_VALID,
    ConditionType.INFERENCE_READY,
)


def summarize(
    conditions: Sequence[Condition], *, endpoint: str, is_deleting: bool, refusal: str = ""
) -> tuple[Condition, Condition]:
    """WorkspaceReady (usable now) and WorkspaceSucceeded (the original's words for it).

    Usable is what serves: with a node lost and every replica up, it is ready and ResourceReady is
    not. ``refusal``: what a write of this pass was refused with; empty when none was.
    """
    found = {c.type: c for c in conditions}
    if is_deleting:
        return _not_ready("workspaceDeleted", "workspaceDeleted", "workspace is being deleted")
    serving = found.get(ConditionType.INFERENCE_READY)
    if serving is not None and serving.status == "True" and endpoint:
        return (
            Condition(
                ConditionType.WORKSPACE_READY, "True", "WorkspaceReady", f"serving at {endpoint}"
            ),
            Condition(
                ConditionType.WORKSPACE_SUCCEEDED,
                "True",
                "workspaceSucceeded",
                "workspace succeeds",
            ),
        )
    unmet = next((c for t in _IN_ORDER if (c := found.get(t)) and c.status != "True"), None)
    if unmet is None:
        waiting = "the Service is not there yet" if serving else "nothing to serve"
        return _not_ready("WorkspaceInferencePending", "workspacePending", refusal or waiting)
    if unmet.reason in PROGRESS and not refusal:
        return _not_ready(unmet.reason, "workspacePending", unmet.message)
    return _not_ready(unmet.reason, "workspaceFailed", refusal or unmet.message)


def state_word(status: str, before: str) -> str:
    """``status.state``: Pending until it first was Ready, then Ready or NotReady."""
    if status == "True":
        return "Ready"
    return "NotReady" if before in ("Ready", "NotReady") else "Pending"


def _not_ready(ready: str, succeeded: str, message: str) -> tuple[Condition, Condition]:
    return (
        Condition(ConditionType.WORKSPACE_READY, "False", ready, message),
        Condition(ConditionType.WORKSPACE_SUCCEEDED, "False", succeeded, message),
    )
