from __future__ import annotations

import re
from pathlib import Path

import pytest

import kaito
from kaito.api.reasons import REASONS, find, remedy

OF_THE_ORIGINAL = [
    "CreateMachinePending",
    "machineFailedCreation",
    "checkMachineStatusFailed",
    "installNodePluginsSuccess",
    "workspaceResourceStatusSuccess",
    "WorkspaceInferenceStatusFailed",
    "WorkspaceInferenceStatusSuccess",
    "workspaceDeleted",
    "workspaceFailed",
    "workspacePending",
    "workspaceSucceeded",
]
OF_CLAIMS = [
    "LaunchFailed",
    "MachineNotLaunched",
    "NodeNotFound",
    "MultipleNodesFound",
    "NodeNotReady",
    "StartupTaintsExist",
    "KnownEphemeralTaintsExist",
    "ResourceNotRegistered",
    "Creating",
    "AwaitingReconciliation",
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
def test_every_reason_of_the_facts_that_the_code_gives_is_listed(name: str) -> None:
    """Facts §3, P1.6, P1.16, P6.2."""
    assert name in REASONS


def test_no_reason_is_listed_that_no_code_gives() -> None:
    """D8d: rows came before their issues, with remedies for what nothing did yet."""
    folder = Path(kaito.__file__).parent
    code = "".join(
        path.read_text()
        for path in folder.rglob("*.py")
        if path.name != "reasons.py" and "sandbox" not in path.parts
    )
    assert [name for name in REASONS if f'"{name}"' not in code] == []


@pytest.mark.parametrize("name", ["NodeNotReady", "NodeLost"])
def test_no_remedy_promises_a_repair_that_nothing_makes(name: str) -> None:
    """D8d: it said that the node would be replaced; nothing repairs nodes yet (G8)."""
    assert "does not replace it" in remedy(name)
    assert "delete its Machine" in remedy(name)


@pytest.mark.parametrize("name", REASONS)
def test_no_remedy_speaks_of_a_repair_or_of_existing_nodes(name: str) -> None:
    """D8d."""
    assert not re.search(r"is replaced|filled again|[Aa]dd a .*[Nn]ode", remedy(name))


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
        "replace": {"NodeBootstrapFailed"},
    }


def test_a_reason_of_another_controller_stays_and_is_retried() -> None:
    row = find("SomethingElse")
    assert (row.name, row.answer, row.retried) == ("SomethingElse", "stay", True)
    assert remedy("SomethingElse")
