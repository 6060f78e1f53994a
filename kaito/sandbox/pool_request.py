"""The body of a PUT: read, checked as AKS checks it, and kept as it was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from kaito.sandbox.answers import Refused
from kaito.sandbox.vm_sizes import VmSize, vm_size

_POOL_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,11}")
_LABEL_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_RESERVED_PREFIXES: Final = ("kubernetes.azure.com", "kubernetes.io")
_TAINT_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_DISK_GB: Final = range(30, 2049)
_MAX_COUNT: Final = 1000


class _Properties(msgspec.Struct, frozen=True, rename="camel"):
    """The properties whose types matter to the simulator. All others pass through as they came."""

    vm_size: str
    count: int = 1
    os_disk_size_gb: int | None = msgspec.field(default=None, name="osDiskSizeGB")
    node_labels: dict[str, str] | None = None
    node_taints: list[str] | None = None
    availability_zones: list[str] | None = None
    scale_set_priority: str | None = None
    max_pods: int | None = None
    os_type: str | None = None
    os_sku: str | None = msgspec.field(default=None, name="osSKU")


class _Body(msgspec.Struct, frozen=True):
    properties: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """A well-formed request for a pool. ``properties``: as sent."""

    size: VmSize
    count: int
    is_spot: bool
    properties: Mapping[str, Any]


def check_pool_name(name: str) -> None:
    """Linux pools: 1 to 12 of a-z and 0-9, a letter first (P4.1).

    Raises:
        Refused: 400 ``InvalidAgentPoolName``.
    """
    if _POOL_NAME.fullmatch(name) is None:
        raise Refused(
            400,
            "InvalidAgentPoolName",
            f"The agent pool name {name!r} is not valid: 1 to 12 lower-case letters and digits, "
            "a letter first",
            target="name",
        )


def parse_pool_request(body: bytes) -> PoolRequest:
    """Read the body of a PUT.

    Raises:
        Refused: 400, naming the property as ``target``.
    """
    try:
        sent = msgspec.json.decode(body, type=_Body).properties
    except msgspec.MsgspecError as err:
        raise Refused(
            400, "InvalidRequestContent", f"The request content is not valid: {err}"
        ) from err
    try:
        seen = msgspec.convert(sent, _Properties)
    except msgspec.ValidationError as err:
        raise _invalid("properties", str(err)) from err
    size = vm_size(seen.vm_size)
    if size is None:
        raise Refused(
            400,
            "VMSizeNotSupported",
            f"The VM size {seen.vm_size!r} is not supported for this cluster",
            target="properties.vmSize",
        )
    if not 0 <= seen.count <= _MAX_COUNT:
        raise _invalid("properties.count", f"{seen.count} is not in 0 to {_MAX_COUNT}")
    if seen.os_disk_size_gb and seen.os_disk_size_gb not in _DISK_GB:
        raise _invalid(
            "properties.osDiskSizeGB", f"{seen.os_disk_size_gb} is not 0 and not in 30 to 2048"
        )
    for key, value in (seen.node_labels or {}).items():
        _check_label(key, value)
    for taint in seen.node_taints or ():
        parse_taint(taint)
    return PoolRequest(size, seen.count, seen.scale_set_priority == "Spot", sent)


def parse_taint(text: str) -> dict[str, str]:
    """``key=value:effect`` as an entry of ``spec.taints``; the value may be empty or left out.

    Raises:
        Refused: 400, no such taint.
    """
    rest, _, effect = text.rpartition(":")
    key, _, value = rest.partition("=")
    if not _is_label_key(key) or effect not in _TAINT_EFFECTS or not _is_label_value(value):
        raise _invalid("properties.nodeTaints", f"{text!r} is not key=value:effect")
    taint = {"key": key, "effect": effect}
    return taint | {"value": value} if value else taint


def _check_label(key: str, value: str) -> None:
    target = "properties.nodeLabels"
    if not _is_label_key(key):
        raise _invalid(target, f"{key!r} is not a label key")
    if key.partition("/")[0] in _RESERVED_PREFIXES:
        raise _invalid(target, f"the prefix of label {key!r} is reserved")
    if not _is_label_value(value):
        raise _invalid(target, f"{value!r} is not a label value (label {key!r})")


def _is_label_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and _LABEL_PREFIX.fullmatch(prefix) is None:
        return False
    return _LABEL_NAME.fullmatch(name) is not None


def _is_label_value(value: str) -> bool:
    return not value or _LABEL_NAME.fullmatch(value) is not None


def _invalid(target: str, what: str) -> Refused:
    return Refused(
        400,
        "InvalidParameter",
        f"The value of parameter {target} is invalid: {what}",
        target=target,
    )
