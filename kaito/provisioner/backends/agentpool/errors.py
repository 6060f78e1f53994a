"""ARM's and AKS's error codes to reason, waits and remedy: the cloud's one door into the tree.

Facts P6.2 as a table. Decided by status and code, nested codes included, ignoring case. Text only
pulls out numbers, and is the last resort for two codes that mean several things.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kaito.errors import ANSWER_LOST, After, CloudError, Never
from kaito.provisioner.interface import Fault

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0


def _doubling(first: float, last: float) -> tuple[float, ...]:
    waits = [first]
    while waits[-1] * 2 < last:
        waits.append(waits[-1] * 2)
    return (*waits, last)


@dataclass(frozen=True, slots=True)
class Row:
    """What one class of refusals means. ``waits``: seconds by refusal in a row, none: terminal."""

    reason: str
    waits: tuple[float, ...]
    remedy: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the cloud said. ``codes``: outermost first, lower case; ``status`` 0: no answer."""

    status: int
    codes: tuple[str, ...]
    code: str
    message: str
    retry_after: float | None = None
    target: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the call was about, for remedies."""

    name: str
    instance_type: str = ""
    location: str = ""


_TEN_MINUTES_TO_HOUR: Final = _doubling(10 * _MINUTE, _HOUR)

QUOTA: Final = Row(
    "QuotaExceeded",
    _TEN_MINUTES_TO_HOUR,
    "Raise the quota of {family} in {region}{numbers} or use another size",
)
SPOT_QUOTA: Final = Row(
    "SpotQuotaExceeded",
    _TEN_MINUTES_TO_HOUR,
    "Raise the spot quota in {region}{numbers} or use regular priority",
)
UNAVAILABLE: Final = Row(
    "InstanceTypeUnavailable",
    (_HOUR, 6 * _HOUR),
    "{size} is not offered to this subscription in {region}: use another size, or request access",
)
IN_PROGRESS: Final = Row(
    "OperationInProgress", (30.0,), "Waits for the operation that is running on the cluster"
)
CLUSTER_STOPPED: Final = Row("ClusterStopped", (2 * _MINUTE,), "Start the cluster")
CLUSTER_BUSY: Final = Row(
    "ClusterBusy", (_MINUTE,), "Waits until the cluster's own operation is over"
)
THROTTLED: Final = Row("Throttled", (_MINUTE,), "Waits for as long as Azure asks")
CREDENTIAL_INVALID: Final = Row(
    "CredentialInvalid", (_MINUTE,), "Check the federated credential, tenant and client id"
)
CREDENTIAL_MISSING: Final = Row(
    "CredentialMissing",
    (_MINUTE,),
    "Set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE, or assign a managed "
    "identity",
)
PERMISSION: Final = Row(
    "PermissionDenied",
    (5 * _MINUTE,),
    "Grant the operator's identity Contributor on the managed cluster (and join on its subnet)",
)
CLUSTER_NOT_FOUND: Final = Row(
    "ClusterNotFound",
    (5 * _MINUTE,),
    "Check ARM_SUBSCRIPTION_ID, ARM_RESOURCE_GROUP and AZURE_CLUSTER_NAME",
)
CLOUD_UNAVAILABLE: Final = Row(
    ANSWER_LOST, _doubling(5.0, 5 * _MINUTE), "See Azure status if it lasts"
)
PREEMPTED: Final = Row("OperationPreempted", (30.0,), "Wait for the next try")
NAME_TAKEN: Final = Row(
    "NameTaken", (_MINUTE,), "Delete the agent pool {name}, which is not ours, or rename the claim"
)
OTHER: Final = Row("CloudError", _doubling(30.0, 10 * _MINUTE), "See the message")
_INVALID: Final = Row("InvalidRequest", (), "Fix {target}")
_BOOTSTRAP: Final = Row(
    "NodeBootstrapFailed",
    (0.0, *_TEN_MINUTES_TO_HOUR),
    "Check egress, DNS and firewall of the node subnet",
)
_CAPACITY: Final = Row(
    "CapacityUnavailable",
    _TEN_MINUTES_TO_HOUR,
    "{region} has no {size} now: wait for the next try, or use another size or region",
)
_ZONAL: Final = Row(
    "ZonalCapacityUnavailable", _doubling(5 * _MINUTE, 30 * _MINUTE), "Allow more zones"
)
_SPOT_REFUSED: Final = Row(
    "SpotRefused", _TEN_MINUTES_TO_HOUR, "Raise the maximum price or use regular priority"
)
_SUBNET_FULL: Final = Row(
    "SubnetFull", _TEN_MINUTES_TO_HOUR, "Free addresses or use another subnet"
)
_NETWORK: Final = Row("NetworkMisconfigured", (_HOUR,), "Repair the subnet that the message names")
_POLICY: Final = Row(
    "PolicyDenied", (_HOUR,), "Ask for an exemption, or set the tags that the policy wants"
)
_PROVIDER: Final = Row(
    "ProviderNotRegistered",
    (10 * _MINUTE,),
    "Register the resource provider Microsoft.ContainerService in the subscription",
)
_SUBSCRIPTION: Final = Row("SubscriptionDisabled", (_HOUR,), "Re-enable the subscription")
_POOL_LIMIT: Final = Row(
    "PoolLimitReached", _TEN_MINUTES_TO_HOUR, "Delete agent pools or use another cluster"
)

_BY_CODE: Final[Mapping[str, Row]] = {
    code: row
    for row, codes in (
        (QUOTA, "quotaexceeded insufficientvcpuquota resourcequotaexceeded"),
        (UNAVAILABLE, "skunotavailable vmsizenotsupported notavailableforsubscription"),
        (Row("ZoneUnavailable", (_HOUR,), "Remove the zone"), "availabilityzonenotsupported"),
        (_CAPACITY, "allocationfailed akscapacityerror akscapacityheavyusage"),
        (_ZONAL, "zonalallocationfailed overconstrainedzonalallocationrequest"),
        (
            Row(
                "AllocationOverconstrained",
                _doubling(15 * _MINUTE, _HOUR),
                "Drop the ephemeral disk, zone or proximity group",
            ),
            "overconstrainedallocationrequest",
        ),
        (_SPOT_REFUSED, "spotevicted lowpriorityvmevicted"),
        (_SUBNET_FULL, "subnetisfull insufficientsubnetsize"),
        (_NETWORK, "subnetisdelegated virtualnetworknotinsucceededstate invalidresourcereference"),
        (_POLICY, "requestdisallowedbypolicy scopelocked"),
        (PERMISSION, "authorizationfailed linkedauthorizationfailed"),
        (
            CREDENTIAL_INVALID,
            "authenticationfailed expiredauthenticationtoken invalidauthenticationtoken"
            " invalidauthenticationtokentenant",
        ),
        (PREEMPTED, "aksoperationpreempted aksoperationpreemptedbydelete"),
        (NAME_TAKEN, "preconditionfailed etagmismatch originaletagnotexpect"),
        (THROTTLED, "throttled toomanyrequests subscriptionrequeststhrottled"),
        (THROTTLED, "toomanyrequestsreceived"),
        (
            CLUSTER_NOT_FOUND,
            "resourcenotfound parentresourcenotfound resourcegroupnotfound subscriptionnotfound",
        ),
        (
            _PROVIDER,
            "missingsubscriptionregistration noregisteredproviderfound"
            " missingregistrationforlocation",
        ),
        (_SUBSCRIPTION, "readonlydisabledsubscription"),
        (
            Row("InvalidName", (), "Use 1 to 12 of a-z and 0-9, a letter first"),
            "invalidagentpoolname",
        ),
        (Row("ReservedName", (), "Use another name"), "reservedresourcename"),
        (
            Row("NameTaken", (), "A different agent pool has the name {name}: rename the claim"),
            "propertychangenotallowed",
        ),
        (_POOL_LIMIT, "agentpoolcountlimitreached maxagentpoolcountreached nodelimitreached"),
        (
            _BOOTSTRAP,
            "vmextensionprovisioningerror vmextensionprovisioningtimeout err_vhd_file_not_found",
        ),
    )
    for code in codes.split()
}
_GENERAL: Final[Mapping[str, Row]] = {
    "operationnotallowed": IN_PROGRESS,
    "anotheroperationinprogress": IN_PROGRESS,
    "conflict": IN_PROGRESS,
    "invalidparameter": _INVALID,
    "invalidrequestcontent": _INVALID,
    "badrequest": _INVALID,
    "reconcilevmssagentpoolfailed": CLOUD_UNAVAILABLE,
    "internaloperationerror": CLOUD_UNAVAILABLE,
    "internalservererror": CLOUD_UNAVAILABLE,
}
"""Codes that often only wrap a more telling one: they count when nothing else is found."""

_BY_STATUS: Final[Mapping[int, Row]] = {
    0: CLOUD_UNAVAILABLE,
    401: CREDENTIAL_INVALID,
    403: PERMISSION,
    409: IN_PROGRESS,
    412: NAME_TAKEN,
    429: THROTTLED,
}

KNOWN_CODES: Final = frozenset(_BY_CODE) | frozenset(_GENERAL) | {"notfound"}
"""The closed set that metrics may be labelled with."""

_QUOTA_TEXT: Final = re.compile(
    r"exceeding approved (?P<family>.+?) cores quota|total regional cores quota", re.IGNORECASE
)
_NOT_OFFERED_TEXT: Final = re.compile(
    r"is not allowed in your subscription in location", re.IGNORECASE
)
_NUMBERS: Final = tuple(
    re.compile(text, re.IGNORECASE | re.DOTALL)
    for text in (
        r"current limit:\s*(?P<limit>\d+).*?current usage:\s*(?P<used>\d+)"
        r".*?additional required:\s*(?P<needed>\d+)",
        r"left regional vcpu quota\s*(?P<left>\d+),\s*requested quota\s*(?P<needed>\d+)",
        r"maximum allowed:\s*(?P<limit>\d+).*?current in use:\s*(?P<used>\d+)"
        r".*?additional requested:\s*(?P<needed>\d+)",
    )
)


def classify(refusal: Refusal) -> Row:
    """The row of the most specific code; else of a general one; else of the status."""
    for code in refusal.codes:
        if row := _BY_CODE.get(code) or _by_pattern(code):
            return _spot_or_regular(row, refusal.message)
    if row := _by_text(refusal):
        return row
    for code in refusal.codes:
        if row := _GENERAL.get(code):
            return row
    if refusal.status >= 500:
        return CLOUD_UNAVAILABLE
    return _BY_STATUS.get(refusal.status, OTHER)


def cloud_error(
    refusal: Refusal, subject: Subject, *, tried: str, row: Row | None = None
) -> CloudError:
    """The refusal as an error. ``tried``: what was asked of the cloud; ``row``: known already."""
    row = classify(refusal) if row is None else row
    waits = _waits(row, refusal)
    request_id = f" (request {refusal.request_id})" if row is OTHER and refusal.request_id else ""
    said = f"{refusal.code}: {refusal.message}" if refusal.code else refusal.message
    return CloudError(
        f"{tried}: {said}{request_id}",
        reason=row.reason,
        retry=After(waits[0]) if waits else Never(),
        remedy=_remedy(row, refusal, subject),
        code=refusal.code,
        terminal=not waits,
        waits=waits,
    )


def fault(error: object, subject: Subject) -> Fault:
    """Why a pool failed.

    error: a pool's ``status.provisioningError`` (ErrorDetail) as AKS sends it, or nothing.
    """
    if not isinstance(error, Mapping):
        refusal = Refusal(200, (), "", "the agent pool failed and AKS gave no cause")
    else:
        refusal = from_detail(error, status=200)
    row = classify(refusal)
    return Fault(
        reason=row.reason,
        message=f"{refusal.code}: {refusal.message}" if refusal.code else refusal.message,
        remedy=_remedy(row, refusal, subject),
        code=refusal.code,
        terminal=not row.waits,
        waits=_waits(row, refusal),
    )


def from_detail(
    error: Mapping[str, Any], *, status: int, retry_after: float | None = None, request_id: str = ""
) -> Refusal:
    """A Refusal from ``{"code", "message", "target", "details": […]}``, nested or not."""
    entries = tuple(_walk(error))
    messages = [str(e["message"]) for e in entries if e.get("message")]
    return Refusal(
        status=status,
        codes=tuple(str(e["code"]).lower() for e in entries if e.get("code")),
        code=next((str(e["code"]) for e in reversed(entries) if e.get("code")), ""),
        message="; ".join(_distinct(messages)),
        retry_after=retry_after,
        target=str(error.get("target") or ""),
        request_id=request_id,
    )


def _distinct(messages: Sequence[str]) -> list[str]:
    """Once each, and none that another one quotes: an outer message often ends with its cause."""
    once = list(dict.fromkeys(messages))
    return [m for m in once if not any(m != other and m.rstrip(".") in other for other in once)]


def _walk(error: Mapping[str, Any], depth: int = 0) -> list[Mapping[str, Any]]:
    found = [error]
    details = error.get("details")
    if depth < 8 and isinstance(details, list):
        for detail in details:
            if isinstance(detail, Mapping):
                found += _walk(detail, depth + 1)
    return found


def _by_pattern(code: str) -> Row | None:
    if code.endswith("vmextensionerror"):
        return _BOOTSTRAP
    return CREDENTIAL_INVALID if code.startswith("invalidauthenticationtoken") else None


def _by_text(refusal: Refusal) -> Row | None:
    if "operationnotallowed" in refusal.codes and _QUOTA_TEXT.search(refusal.message):
        return _spot_or_regular(QUOTA, refusal.message)
    if "badrequest" in refusal.codes and _NOT_OFFERED_TEXT.search(refusal.message):
        return UNAVAILABLE
    return None


def _spot_or_regular(row: Row, message: str) -> Row:
    return SPOT_QUOTA if row is QUOTA and "lowprioritycores" in message.lower() else row


def _waits(row: Row, refusal: Refusal) -> tuple[float, ...]:
    if row in (THROTTLED, IN_PROGRESS) and refusal.retry_after is not None:
        return (refusal.retry_after,)
    if row in (QUOTA, SPOT_QUOTA) and _numbers(refusal.message).get("limit") == "0":
        return (_HOUR,)  # no quota at all: someone has to ask for it first
    return row.waits


def _remedy(row: Row, refusal: Refusal, subject: Subject) -> str:
    family = _QUOTA_TEXT.search(refusal.message)
    numbers = ", ".join(f"{name} {count}" for name, count in _numbers(refusal.message).items())
    return row.remedy.format(
        name=subject.name,
        size=subject.instance_type or "the VM size",
        region=subject.location or "this region",
        family=(family and family["family"]) or "the size's family",
        numbers=f" ({numbers})" if numbers else "",
        target=f"{refusal.target}: {refusal.message}" if refusal.target else refusal.message,
    )


def _numbers(message: str) -> dict[str, str]:
    found = next((m for pattern in _NUMBERS if (m := pattern.search(message))), None)
    return found.groupdict() if found else {}
