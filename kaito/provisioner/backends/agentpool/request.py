"""From a launch request to the body of an agent pool's PUT, and the checks before any call. Pure.

The default body is the original's field by field (facts P4.2), plus our own marks of ownership.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

from kaito import constants
from kaito.errors import CloudError, Never
from kaito.provisioner.interface import LaunchRequest

_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,11}")
_GIB: Final = 1 << 30
_DISK_MIN_GB: Final = 30
_DISK_MAX_GB: Final = 2048
_TIME_LABEL: Final = "%Y-%m-%dT%H-%M-%SZ"
_REFUSED_LABEL_DOMAINS: Final = ("kubernetes.azure.com", "kubernetes.io")


def agent_pool(request: LaunchRequest) -> dict[str, Any]:
    """The body of the PUT.

    Raises:
        CloudError: terminal; ``InvalidName``, ``InvalidRequirement`` or ``InvalidDiskSize``.
    """
    check_name(request.name)
    if not request.instance_type:
        raise _refused(
            "InvalidRequirement",
            f"claim {request.name} names no VM size",
            f"Give {constants.LABEL_INSTANCE_TYPE} one value with operator In",
        )
    properties: dict[str, Any] = {
        "count": 1,
        "type": "VirtualMachineScaleSets",
        "vmSize": request.instance_type,
        "osType": "Linux",
    }
    if request.image_family:
        is_azure_linux = request.image_family.lower() == "azurelinux"
        properties["osSKU"] = "AzureLinux" if is_azure_linux else "Ubuntu"
    if disk_gb := os_disk_gb(request.storage_bytes):
        properties["osDiskSizeGB"] = disk_gb
    properties["nodeLabels"] = node_labels(request)
    properties["nodeTaints"] = [f"{t.key}={t.value}:{t.effect}" for t in request.taints]
    return {"properties": properties}


def node_labels(request: LaunchRequest) -> dict[str, str]:
    """The caller's labels that AKS takes, then our marks, which no caller can override."""
    return {
        **{key: value for key, value in request.labels.items() if is_accepted_label(key)},
        constants.LABEL_MACHINE_TYPE: machine_type(request.instance_type),
        constants.LABEL_CREATION_TIMESTAMP: time_label(request.claim_created_at),
        constants.LABEL_CLAIM_UID: request.claim_uid,
        constants.LABEL_LAUNCHED_AT: time_label(request.launched_at),
    }


def is_accepted_label(key: str) -> bool:
    """AKS refuses pool labels of its own domains and Kubernetes' (facts P2.2)."""
    domain, slash, _ = key.rpartition("/")
    return not slash or not any(
        domain == refused or domain.endswith("." + refused) for refused in _REFUSED_LABEL_DOMAINS
    )


def machine_type(instance_type: str) -> str:
    """``gpu`` for N-series sizes, else ``cpu``; case-sensitive like the original (facts P2.1)."""
    return "gpu" if "Standard_N" in instance_type else "cpu"


def os_disk_gb(storage_bytes: int) -> int:
    """OS disk in GB for a storage request; 0: leave it to the service.

    Up to 2048 the number already is GB: the original took it so, and Kaito's falcon-40b asks for
    a bare ``400`` (facts P4.6).

    Raises:
        CloudError: ``InvalidDiskSize``, over what the service offers.
    """
    if storage_bytes <= _DISK_MAX_GB:
        return max(0, storage_bytes)
    disk_gb = max(_DISK_MIN_GB, -(-storage_bytes // _GIB))
    if disk_gb > _DISK_MAX_GB:
        raise _refused(
            "InvalidDiskSize",
            f"an OS disk of {disk_gb} GB was asked for; the most is {_DISK_MAX_GB} GB",
            f"Ask for at most {_DISK_MAX_GB}Gi of storage",
        )
    return disk_gb


def check_name(name: str) -> None:
    """An agent pool can have this name (facts P4.1).

    Raises:
        CloudError: ``InvalidName``. An empty name would address all pools at once.
    """
    if not _NAME.fullmatch(name):
        raise _refused(
            "InvalidName",
            f"{name!r} cannot be the name of an agent pool",
            "Name the claim with 1 to 12 of a-z and 0-9, a letter first",
        )


def time_label(epoch_seconds: float) -> str:
    """A time as a label value: ``2026-01-31T09-30-00Z``."""
    return datetime.fromtimestamp(int(epoch_seconds), UTC).strftime(_TIME_LABEL)


def parse_time_label(text: str | None) -> float | None:
    """Seconds since the epoch; None for a label that is missing or says something else."""
    try:
        return datetime.strptime(text or "", _TIME_LABEL).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _refused(reason: str, message: str, remedy: str) -> CloudError:
    return CloudError(message, reason=reason, retry=Never(), remedy=remedy, terminal=True)
