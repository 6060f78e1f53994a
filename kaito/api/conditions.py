"""Condition types and the one form in which a step reports. Reasons: see ``reasons.py``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Status = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """Types on a Workspace; each is owned by one step (or by the summary)."""

    MACHINE_READY = "MachineReady"
    NODECLAIM_READY = "NodeClaimReady"
    RESOURCE_READY = "ResourceReady"
    INFERENCE_READY = "InferenceReady"
    JOB_STARTED = "JobStarted"
    SPEC_VALID = "SpecValid"
    WORKSPACE_DELETING = "WorkspaceDeleting"
    WORKSPACE_READY = "WorkspaceReady"
    WORKSPACE_SUCCEEDED = "WorkspaceSucceeded"


@dataclass(frozen=True, slots=True)
class Condition:
    """What a step says of its condition now; ``reconcilers/status.py`` adds time and generation."""

    type: str
    status: Status
    reason: str
    message: str = ""
