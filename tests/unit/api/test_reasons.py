from __future__ import annotations

import re

import pytest

from kaito.api.reasons import REASONS, find, remedy

OF_THE_ORIGINAL = [
    "CreateMachinePending",
    "machineFailedCreation",
    "checkMachineStatusFailed",
    "installNodePluginsSuccess",
    "CreateNodeClaimPending",
    "nodeClaimFailedCreation",
    "checkNodeClaimStatusFailed",
    "workspaceResourceStatusFailed",
    "workspaceResourceStatusSuccess",
    "WorkspaceInferenceStatusFailed",
    "WorkspaceInferenceStatusSuccess",
    "WorkspaceTuningJobStatusFailed",
    "WorkspaceTuningJobStatusStarted",
    "workspaceDeleted",
    "workspaceFailed",
    "workspacePending",
    "workspaceSucceeded",
]
OF_CLAIMS = [
    "LaunchFailed",
    "LinkFailed",
    "MachineNotLaunched",
    "NodeNotFound",
    "MultipleNodesFound",
    "NodeNotReady",
    "StartupTaintsExist",
    "KnownEphemeralTaintsExist",
    "ResourceNotRegistered",
    "Creating",
    "AwaitingReconciliation",
    "ReconcilingDependents",
    "UnhealthyDependents",
    "InstanceGone",
]
OF_THE_CLOUD = [
    "QuotaExceeded",
    "SpotQuotaExceeded",
    "InstanceTypeUnavailable",
    "ZoneUnavailable",
    "CapacityUnavailable",
    "ZonalCapacityUnavailable",
    "AllocationOverconstrained",
    "SpotRefused",
    "SubnetFull",
    "NetworkMisconfigured",
    "PolicyDenied",
    "PermissionDenied",
    "CredentialInvalid",
    "CredentialMissing",
    "OperationInProgress",
    "OperationPreempted",
    "NameTaken",
    "ClusterStopped",
    "ClusterBusy",
    "Throttled",
    "ClusterNotFound",
    "ProviderNotRegistered",
    "SubscriptionDisabled",
    "InvalidRequest",
    "InvalidName",
    "ReservedName",
    "PoolLimitReached",
    "NodeBootstrapFailed",
    "CloudUnavailable",
    "CloudError",
]


@pytest.mark.parametrize("name", [*OF_THE_ORIGINAL, *OF_CLAIMS, *OF_THE_CLOUD])
def test_every_reason_of_the_facts_is_listed(name: str) -> None:
    """Facts §3, P1.6, P1.16, P6.2."""
    assert name in REASONS


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_fits_a_condition_and_its_remedy_is_a_sentence(name: str) -> None:
    row = REASONS[name]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", row.name)
    assert row.remedy == "" or re.fullmatch(r"[A-Z].*\.", row.remedy)


@pytest.mark.parametrize("name", REASONS)
def test_what_is_not_retried_says_what_to_do(name: str) -> None:
    assert REASONS[name].retried or REASONS[name].remedy


def test_the_next_instance_type_is_asked_for_where_this_one_cannot_be_had() -> None:
    """G4: one of three answers per reason."""
    by_answer = {
        answer: {r.name for r in REASONS.values() if r.answer == answer}
        for answer in ("next", "replace")
    }
    assert by_answer == {
        "next": {
            "QuotaExceeded",
            "SpotQuotaExceeded",
            "InstanceTypeUnavailable",
            "ZoneUnavailable",
            "CapacityUnavailable",
            "ZonalCapacityUnavailable",
            "AllocationOverconstrained",
            "SpotRefused",
        },
        "replace": {"LivenessExpired", "NodeBootstrapFailed"},
    }


def test_a_reason_of_another_controller_stays_and_is_retried() -> None:
    row = find("SomethingElse")
    assert (row.name, row.answer, row.retried) == ("SomethingElse", "stay", True)
    assert remedy("SomethingElse")
