"""From an agent pool as ARM sends it to an ``Instance``. Pure, and tolerant of what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kaito import constants
from kaito.provisioner.backends.agentpool import errors
from kaito.provisioner.backends.agentpool.request import parse_time_label
from kaito.provisioner.interface import Fault, Instance, InstanceState

_STATES: Final = {
    "creating": InstanceState.CREATING,
    "succeeded": InstanceState.READY,
    "failed": InstanceState.FAILED,
    "canceled": InstanceState.FAILED,
    "deleting": InstanceState.DELETING,
}


def instance(pool: Mapping[str, Any], *, location: str = "") -> Instance:
    """One pool as the port's word for it.

    pool: an item of the pool list. An unknown provisioning state counts as busy (facts P5.11).
    """
    properties: Mapping[str, Any] = pool.get("properties") or {}
    labels: Mapping[str, str] = properties.get("nodeLabels") or {}
    raw_state = str(properties.get("provisioningState") or "Unknown")
    state = _STATES.get(raw_state.lower(), InstanceState.BUSY)
    name, size = str(pool.get("name") or ""), str(properties.get("vmSize") or "")
    return Instance(
        name=name,
        state=state,
        raw_state=raw_state,
        instance_type=size,
        is_ours=is_ours(labels),
        claim_uid=labels.get(constants.LABEL_CLAIM_UID),
        launched_at=parse_time_label(labels.get(constants.LABEL_LAUNCHED_AT)),
        image_id=str(properties.get("nodeImageVersion") or ""),
        labels=dict(labels),
        fault=_fault(properties, raw_state, errors.Subject(name, size, location))
        if state is InstanceState.FAILED
        else None,
        version=str(properties.get("eTag") or ""),
    )


def is_ours(labels: Mapping[str, str]) -> bool:
    """Our claim's uid is on it, or it bears the original's two marks (facts P2.4)."""
    if constants.LABEL_CLAIM_UID in labels:
        return True
    by_kaito = constants.LABEL_WORKSPACE in labels or constants.LABEL_RAGENGINE in labels
    by_provisioner = (
        constants.LABEL_PROVISIONER_NAME in labels or constants.LABEL_NODEPOOL in labels
    )
    return by_kaito and by_provisioner


def _fault(properties: Mapping[str, Any], raw_state: str, subject: errors.Subject) -> Fault:
    cause = (properties.get("status") or {}).get("provisioningError")
    if cause is None and raw_state.lower() == "canceled":
        cause = {"code": "AKSOperationPreempted", "message": "the creation was cancelled"}
    return errors.fault(cause, subject)
