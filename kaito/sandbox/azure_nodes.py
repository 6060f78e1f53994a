"""Node objects as AKS registers them (P7.1 to P7.9). Pure: a spec and a state in, JSON out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kaito.constants import LABEL_ACCELERATOR, LABEL_AGENTPOOL, RESOURCE_GPU
from kaito.sandbox.pool_request import parse_taint
from kaito.sandbox.pools import Pool
from kaito.sandbox.quota import is_spot
from kaito.sandbox.site import Site, guid
from kaito.sandbox.vm_sizes import VmSize

TAINT_UNINITIALIZED: Final = "node.cloudprovider.kubernetes.io/uninitialized"
UBUNTU_IMAGE: Final = "AKSUbuntu-2204gen2containerd-202601.13.0"
AZURE_LINUX_IMAGE: Final = "AKSAzureLinux-V3gen2-202601.13.0"
DEFAULT_MAX_PODS: Final = 110
SPOT_LABEL: Final = "kubernetes.azure.com/scalesetpriority"

_OS_IMAGE: Final = {"Ubuntu": "Ubuntu 22.04.5 LTS", "AzureLinux": "Microsoft Azure Linux 3.0"}
_OS_EFFECTIVE: Final = {"Ubuntu": "Ubuntu2204", "AzureLinux": "AzureLinux3"}
_HEALTHY: Final = (
    ("MemoryPressure", "KubeletHasSufficientMemory"),
    ("DiskPressure", "KubeletHasNoDiskPressure"),
    ("PIDPressure", "KubeletHasSufficientPID"),
    ("KernelDeadlock", "KernelHasNoDeadlock"),
    ("ReadonlyFilesystem", "FilesystemIsNotReadOnly"),
    ("FilesystemCorruptionProblem", "FilesystemIsOK"),
    ("ContainerRuntimeProblem", "ContainerRuntimeIsUp"),
    ("KubeletProblem", "KubeletIsUp"),
    ("FrequentKubeletRestart", "NoFrequentKubeletRestart"),
    ("FrequentContainerdRestart", "NoFrequentContainerdRestart"),
)
_CPU_RESERVED: Final = ((1, 60), (2, 100), (4, 140), (8, 180), (16, 260), (32, 420), (64, 740))
_KI_PER_DISK_GB: Final = 129886128 / 128
_BASE36: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """What does not change in a Node's life. ``pool`` is empty for a Node of no pool.

    ``labels``, ``taints``: of the pool. ``address``: its InternalIP. ``provider_id``: P4.9.
    """

    name: str
    pool: str
    size: VmSize
    provider_id: str
    address: str
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    os_sku: str
    image_version: str
    disk_gb: int
    max_pods: int
    zone: str
    mode: str
    is_spot: bool


@dataclass(frozen=True, slots=True)
class NodeState:
    """What changes. ``ready``: status of the Ready condition; GPU counts as the plugin reports."""

    is_initialized: bool = False
    ready: str = "False"
    gpu_capacity: int = 0
    gpu_allocatable: int = 0
    is_eviction_scheduled: bool = False


def pool_node(pool: Pool, site: Site, index: int, address: str) -> NodeSpec:
    """The Node of a pool's VM with that instance number."""
    sent = pool.properties
    zones: Sequence[str] = sent.get("availabilityZones") or ()
    vmss = f"aks-{pool.name}-{site.vmss_digits}-vmss"
    return NodeSpec(
        name=f"{vmss}{_base36(index)}",
        pool=pool.name,
        size=pool.size,
        provider_id=_provider_id(site, f"virtualMachineScaleSets/{vmss}/virtualMachines/{index}"),
        address=address,
        labels=sent.get("nodeLabels") or {},
        taints=tuple(parse_taint(text) for text in sent.get("nodeTaints") or ()),
        os_sku=os_sku(sent),
        image_version=image_version(sent),
        disk_gb=sent.get("osDiskSizeGB") or pool.size.default_disk_gb,
        max_pods=sent.get("maxPods") or DEFAULT_MAX_PODS,
        zone=f"{site.location}-{zones[index % len(zones)]}" if zones else "",
        mode=str(sent.get("mode") or "User").lower(),
        is_spot=is_spot(sent),
    )


def spare_node(
    name: str, size: VmSize, labels: Mapping[str, str], site: Site, address: str
) -> NodeSpec:
    """A Node that somebody brought: a plain VM, no pool, the labels given."""
    return NodeSpec(
        name=name,
        pool="",
        size=size,
        provider_id=_provider_id(site, f"virtualMachines/{name}"),
        address=address,
        labels=labels,
        taints=(),
        os_sku="Ubuntu",
        image_version=UBUNTU_IMAGE,
        disk_gb=size.default_disk_gb,
        max_pods=DEFAULT_MAX_PODS,
        zone="",
        mode="user",
        is_spot=False,
    )


def os_sku(properties: Mapping[str, Any]) -> str:
    """The pool's ``osSKU``; Ubuntu when unset."""
    return str(properties.get("osSKU") or "Ubuntu")


def image_version(properties: Mapping[str, Any]) -> str:
    """``nodeImageVersion`` of a pool made now."""
    return AZURE_LINUX_IMAGE if os_sku(properties).startswith("AzureLinux") else UBUNTU_IMAGE


def registration(spec: NodeSpec, site: Site, joined_at: str) -> dict[str, Any]:
    """The Node as its kubelet creates it: not ready, uninitialized, no providerID (P7.1)."""
    taints = [dict(taint) for taint in spec.taints]
    if spec.is_spot:
        taints.append({"key": SPOT_LABEL, "value": "spot", "effect": "NoSchedule"})
    taints.append({"key": TAINT_UNINITIALIZED, "value": "true", "effect": "NoSchedule"})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": spec.name,
            "labels": kubelet_labels(spec, site),
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
        },
        "spec": {"taints": taints},
        "status": status(spec, NodeState(), site, joined_at=joined_at, now=joined_at),
    }


def kubelet_labels(spec: NodeSpec, site: Site) -> dict[str, str]:
    """Labels from the first moment on; the cloud's own beat the pool's of the same key (P7.3)."""
    labels = {
        **spec.labels,
        "kubernetes.io/hostname": spec.name,
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
        "node.kubernetes.io/instance-type": spec.size.name,
        "beta.kubernetes.io/instance-type": spec.size.name,
    }
    if spec.size.gpu_count:
        labels |= {LABEL_ACCELERATOR: "nvidia"}
    if not spec.pool:
        return labels
    azure = "kubernetes.azure.com"
    labels |= {
        "agentpool": spec.pool,
        LABEL_AGENTPOOL: spec.pool,
        f"{azure}/cluster": site.node_resource_group,
        f"{azure}/mode": spec.mode,
        f"{azure}/role": "agent",
        f"{azure}/managedby": "aks",
        f"{azure}/nodepool-type": "VirtualMachineScaleSets",
        f"{azure}/node-image-version": spec.image_version,
        f"{azure}/os-sku": spec.os_sku,
        f"{azure}/os-sku-effective": _OS_EFFECTIVE.get(spec.os_sku, spec.os_sku),
        f"{azure}/os-sku-requested": spec.os_sku,
        f"{azure}/storageprofile": "managed",
        f"{azure}/storagetier": "Premium_LRS",
        "storageprofile": "managed",
        "storagetier": "Premium_LRS",
        f"{azure}/kubelet-identity-client-id": guid(f"{site.cluster_id}/kubelet"),
        f"{azure}/sku-cpu": str(spec.size.vcpus),
        f"{azure}/sku-memory": str(spec.size.memory_gib * 1024),
    }
    if spec.size.gpu_count:
        labels |= {f"{azure}/accelerator": "nvidia"}
    if spec.is_spot:
        labels |= {SPOT_LABEL: "spot"}
    return labels


def cloud_labels(spec: NodeSpec, site: Site) -> dict[str, str]:
    """Labels that come with initialization: where the VM is. Without zones, a fault domain."""
    zone = spec.zone or "0"
    return {
        "topology.kubernetes.io/region": site.location,
        "failure-domain.beta.kubernetes.io/region": site.location,
        "topology.kubernetes.io/zone": zone,
        "failure-domain.beta.kubernetes.io/zone": zone,
        "topology.disk.csi.azure.com/zone": spec.zone,
    }


def initialization(
    spec: NodeSpec, site: Site, *, taints: Sequence[Mapping[str, Any]], resource_version: str
) -> dict[str, Any]:
    """A merge patch as the cloud node manager makes it on a Node with these taints."""
    rest = [dict(taint) for taint in taints if taint.get("key") != TAINT_UNINITIALIZED]
    return {
        "metadata": {
            "resourceVersion": resource_version,
            "labels": cloud_labels(spec, site),
            "annotations": {
                "csi.volume.kubernetes.io/nodeid": f'{{"disk.csi.azure.com":"{spec.name}"}}'
            },
        },
        "spec": {"providerID": spec.provider_id, "taints": rest},
    }


def status(
    spec: NodeSpec, state: NodeState, site: Site, *, joined_at: str, now: str
) -> dict[str, Any]:
    """The whole status. ``now``: when Ready turned to what it is."""
    capacity, allocatable = resources(spec)
    if state.gpu_capacity:
        capacity[RESOURCE_GPU] = str(state.gpu_capacity)
        allocatable[RESOURCE_GPU] = str(state.gpu_allocatable)
    addresses = [{"type": "Hostname", "address": spec.name}]
    if state.is_initialized:
        addresses.insert(0, {"type": "InternalIP", "address": spec.address})
    return {
        "addresses": addresses,
        "capacity": capacity,
        "allocatable": allocatable,
        "conditions": conditions(state, joined_at=joined_at, now=now),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": "amd64",
            "operatingSystem": "linux",
            "osImage": _OS_IMAGE.get(spec.os_sku, _OS_IMAGE["Ubuntu"]),
            "kernelVersion": "5.15.0-1098-azure",
            "containerRuntimeVersion": "containerd://1.7.29-1",
            "kubeletVersion": f"v{site.kubernetes_version}",
            "kubeProxyVersion": "",
            "machineID": guid(f"{spec.name}/machine").replace("-", ""),
            "systemUUID": guid(f"{spec.name}/system"),
            "bootID": guid(f"{spec.name}/boot"),
        },
    }


def conditions(state: NodeState, *, joined_at: str, now: str) -> list[dict[str, str]]:
    """Ready, the kubelet's pressures, the problem detector's; healthy but for the state (P7.7)."""
    event = "True" if state.is_eviction_scheduled else "False"
    event_reason = "PreemptScheduled" if state.is_eviction_scheduled else "NoVMEventScheduled"
    reason, message = _READY[state.ready]
    rows = [
        *((type_, "False", good, good, joined_at) for type_, good in _HEALTHY),
        (
            "VMEventScheduled",
            event,
            event_reason,
            event_reason,
            now if event == "True" else joined_at,
        ),
        ("Ready", state.ready, reason, message, now),
    ]
    return [
        {
            "type": type_,
            "status": value,
            "reason": why,
            "message": text,
            "lastTransitionTime": since,
            "lastHeartbeatTime": now,
        }
        for type_, value, why, text, since in rows
    ]


_READY: Final = {
    "True": ("KubeletReady", "kubelet is posting ready status"),
    "False": ("KubeletNotReady", "container runtime network not ready: cni plugin not initialized"),
    "Unknown": ("NodeStatusUnknown", "Kubelet stopped posting node status."),
}


def resources(spec: NodeSpec) -> tuple[dict[str, str], dict[str, str]]:
    """Capacity and allocatable without GPUs (P7.8)."""
    memory_mib = int(spec.size.memory_gib * 1024 * 0.97)
    reserved_mib = min(20 * spec.max_pods + 50, memory_mib // 4) + 100
    disk_ki = int(spec.disk_gb * _KI_PER_DISK_GB)
    fixed = {"hugepages-1Gi": "0", "hugepages-2Mi": "0", "pods": str(spec.max_pods)}
    capacity = {
        "cpu": str(spec.size.vcpus),
        "memory": f"{memory_mib * 1024}Ki",
        "ephemeral-storage": f"{disk_ki}Ki",
        **fixed,
    }
    allocatable = {
        "cpu": f"{spec.size.vcpus * 1000 - cpu_reserved(spec.size.vcpus)}m",
        "memory": f"{(memory_mib - reserved_mib) * 1024}Ki",
        "ephemeral-storage": str(disk_ki * 1024 * 9 // 10),
        **fixed,
    }
    return capacity, allocatable


def cpu_reserved(vcpus: int) -> int:
    """Millicores that the system keeps: a table, linear between its rows and after them."""
    for (low, at_low), (high, at_high) in itertools.pairwise(_CPU_RESERVED):
        if vcpus <= high or high == _CPU_RESERVED[-1][0]:
            return at_low + (at_high - at_low) * (vcpus - low) // (high - low)
    raise AssertionError(vcpus)


def _provider_id(site: Site, machine: str) -> str:
    return (
        f"azure:///subscriptions/{site.subscription_id}/resourceGroups/{site.node_resource_group}"
        f"/providers/Microsoft.Compute/{machine}"
    )


def _base36(number: int) -> str:
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        digits = _BASE36[digit] + digits
    return digits
