"""The error table of facts P6.2, row by row."""

from typing import Any

import pytest

from kaito.errors import After, CloudError, Never
from kaito.provisioner.backends.agentpool.errors import (
    Refusal,
    Subject,
    cloud_error,
    fault,
    from_detail,
)

SUBJECT = Subject("pool1", "Standard_NC6s_v3", "eastus")
TEN_TO_HOUR = (600.0, 1200.0, 2400.0, 3600.0)


def classified(
    *codes: str, status: int = 400, message: str = "said", retry_after: float | None = None
) -> CloudError:
    nested: dict[str, Any] = {"code": codes[-1], "message": message} if codes else {}
    for code in reversed(codes[:-1]):
        nested = {"code": code, "message": "outer", "details": [nested]}
    refusal = from_detail(nested, status=status, retry_after=retry_after)
    return cloud_error(refusal, SUBJECT, tried="create agent pool pool1")


@pytest.mark.parametrize(
    ("code", "reason", "waits"),
    [
        ("QuotaExceeded", "QuotaExceeded", TEN_TO_HOUR),
        ("InsufficientVCPUQuota", "QuotaExceeded", TEN_TO_HOUR),
        ("ResourceQuotaExceeded", "QuotaExceeded", TEN_TO_HOUR),
        ("SkuNotAvailable", "InstanceTypeUnavailable", (3600.0, 21600.0)),
        ("VMSizeNotSupported", "InstanceTypeUnavailable", (3600.0, 21600.0)),
        ("NotAvailableForSubscription", "InstanceTypeUnavailable", (3600.0, 21600.0)),
        ("AvailabilityZoneNotSupported", "ZoneUnavailable", (3600.0,)),
        ("AllocationFailed", "CapacityUnavailable", TEN_TO_HOUR),
        ("AKSCapacityError", "CapacityUnavailable", TEN_TO_HOUR),
        ("AksCapacityHeavyUsage", "CapacityUnavailable", TEN_TO_HOUR),
        ("ZonalAllocationFailed", "ZonalCapacityUnavailable", (300.0, 600.0, 1200.0, 1800.0)),
        (
            "OverconstrainedZonalAllocationRequest",
            "ZonalCapacityUnavailable",
            (300.0, 600.0, 1200.0, 1800.0),
        ),
        ("OverconstrainedAllocationRequest", "AllocationOverconstrained", (900.0, 1800.0, 3600.0)),
        ("SpotEvicted", "SpotRefused", TEN_TO_HOUR),
        ("LowPriorityVMEvicted", "SpotRefused", TEN_TO_HOUR),
        ("SubnetIsFull", "SubnetFull", TEN_TO_HOUR),
        ("InsufficientSubnetSize", "SubnetFull", TEN_TO_HOUR),
        ("SubnetIsDelegated", "NetworkMisconfigured", (3600.0,)),
        ("VirtualNetworkNotInSucceededState", "NetworkMisconfigured", (3600.0,)),
        ("InvalidResourceReference", "NetworkMisconfigured", (3600.0,)),
        ("RequestDisallowedByPolicy", "PolicyDenied", (3600.0,)),
        ("ScopeLocked", "PolicyDenied", (3600.0,)),
        ("AuthorizationFailed", "PermissionDenied", (300.0,)),
        ("LinkedAuthorizationFailed", "PermissionDenied", (300.0,)),
        ("AuthenticationFailed", "CredentialInvalid", (60.0,)),
        ("ExpiredAuthenticationToken", "CredentialInvalid", (60.0,)),
        ("InvalidAuthenticationTokenTenant", "CredentialInvalid", (60.0,)),
        ("OperationNotAllowed", "OperationInProgress", (30.0,)),
        ("AnotherOperationInProgress", "OperationInProgress", (30.0,)),
        ("Conflict", "OperationInProgress", (30.0,)),
        ("AKSOperationPreemptedByDelete", "OperationPreempted", (30.0,)),
        ("PreconditionFailed", "NameTaken", (60.0,)),
        ("Throttled", "Throttled", (60.0,)),
        ("SubscriptionRequestsThrottled", "Throttled", (60.0,)),
        ("ResourceGroupNotFound", "ClusterNotFound", (300.0,)),
        ("ResourceNotFound", "ClusterNotFound", (300.0,)),
        ("MissingSubscriptionRegistration", "ProviderNotRegistered", (600.0,)),
        ("ReadOnlyDisabledSubscription", "SubscriptionDisabled", (3600.0,)),
        ("InvalidParameter", "InvalidRequest", ()),
        ("BadRequest", "InvalidRequest", ()),
        ("InvalidAgentPoolName", "InvalidName", ()),
        ("ReservedResourceName", "ReservedName", ()),
        ("PropertyChangeNotAllowed", "NameTaken", ()),
        ("VMExtensionProvisioningError", "NodeBootstrapFailed", (0.0, *TEN_TO_HOUR)),
        ("OutboundConnFailVMExtensionError", "NodeBootstrapFailed", (0.0, *TEN_TO_HOUR)),
        ("ERR_VHD_FILE_NOT_FOUND", "NodeBootstrapFailed", (0.0, *TEN_TO_HOUR)),
        ("AgentPoolCountLimitReached", "PoolLimitReached", TEN_TO_HOUR),
        ("InternalServerError", "CloudUnavailable", (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)),
        ("NeverHeardOf", "CloudError", (30.0, 60.0, 120.0, 240.0, 480.0, 600.0)),
    ],
)
def test_each_code_has_its_reason_and_its_waits(code: str, reason: str, waits: tuple[float, ...]):
    """P6.2."""
    error = classified(code)
    assert (error.reason, error.waits) == (reason, waits)
    assert error.terminal is (not waits)
    assert error.retry == (After(waits[0]) if waits else Never())
    assert code in str(error)
    assert error.remedy


def test_codes_are_compared_without_case():
    """P6.1."""
    assert classified("aKsCaPaCiTyHeAvYuSaGe").reason == "CapacityUnavailable"


def test_the_most_specific_nested_code_wins():
    """P6.1: the outer code often only wraps."""
    error = classified("ReconcileVMSSAgentPoolFailed", "BadRequest", "AllocationFailed")
    assert (error.reason, error.code) == ("CapacityUnavailable", "AllocationFailed")


QUOTA = (
    "Operation could not be completed as it results in exceeding approved standardNCSv3Family "
    "Cores quota. Current Limit: 6, Current Usage: 3, Additional Required: 6"
)


def test_operation_not_allowed_may_mean_quota_and_the_numbers_are_told():
    """P6.2, P6.4."""
    error = classified("OperationNotAllowed", message=QUOTA)
    assert error.reason == "QuotaExceeded"
    assert error.remedy == (
        "Raise the quota of standardNCSv3Family in eastus (limit 6, used 3, needed 6) "
        "or use another size"
    )


def test_no_quota_at_all_waits_an_hour():
    """P6.2: limit 0."""
    error = classified("QuotaExceeded", message=QUOTA.replace("Limit: 6", "Limit: 0"))
    assert error.waits == (3600.0,)


def test_other_wordings_of_the_numbers_are_read():
    """P6.4."""
    error = classified(
        "InsufficientVCPUQuota", message="left regional vcpu quota 4, requested quota 24"
    )
    assert "(left 4, needed 24)" in error.remedy


def test_low_priority_cores_are_spot_quota():
    """P6.2."""
    error = classified("QuotaExceeded", message="LowPriorityCores: Current Limit: 3")
    assert error.reason == "SpotQuotaExceeded"


def test_bad_request_may_mean_that_the_size_is_not_offered():
    """P6.2, P1.12."""
    text = "The VM size of X is not allowed in your subscription in location 'eastus'"
    assert classified("BadRequest", message=text).reason == "InstanceTypeUnavailable"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (0, "CloudUnavailable"),
        (401, "CredentialInvalid"),
        (403, "PermissionDenied"),
        (429, "Throttled"),
        (503, "CloudUnavailable"),
        (418, "CloudError"),
    ],
)
def test_an_answer_without_a_code_is_read_by_its_status(status: int, reason: str):
    """P5.10: 5xx may have HTML or no body."""
    refusal = Refusal(status, (), "", "html")
    assert cloud_error(refusal, SUBJECT, tried="list").reason == reason


def test_retry_after_is_obeyed_where_the_cloud_asks_us_to_wait():
    """P6.2."""
    assert classified("Throttled", status=429, retry_after=17).retry == After(17)
    assert classified("OperationNotAllowed", status=409, retry_after=7).waits == (7,)
    assert classified("AllocationFailed", retry_after=7).waits == TEN_TO_HOUR


def test_a_failed_pool_without_a_cause_is_still_a_fault():
    """P5.18."""
    assert fault(None, SUBJECT).reason == "CloudError"


def test_details_that_are_not_what_they_should_be_are_passed_over():
    """P5.10."""
    refusal = from_detail({"code": "A", "details": ["text", None]}, status=400)
    assert refusal.codes == ("a",)


def test_a_cause_that_the_outer_message_quotes_is_said_once():
    """P5.10: `could not be created. no capacity; no capacity.`"""
    quoted = {
        "code": "ReconcileVMSSAgentPoolFailed",
        "message": "Agent pool p could not be created. No capacity",
        "details": [{"code": "AllocationFailed", "message": "No capacity."}],
    }
    assert from_detail(quoted, status=200).message == quoted["message"]
    inner = {"code": "a", "message": "All: it", "details": [{"code": "b", "message": "other"}]}
    assert from_detail(inner, status=200).message == "All: it; other"


def test_the_remedy_for_missing_capacity_is_a_sentence():
    """P6.2: `tried again; or use` was none."""
    assert classified("AllocationFailed").remedy == (
        "eastus has no Standard_NC6s_v3 now: wait for the next try, or use another size or region"
    )
