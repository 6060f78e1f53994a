"""Nodes as AKS registers them (facts §7)."""

from __future__ import annotations

import pytest

from kaito.sandbox.azure_nodes import (
    NodeSpec,
    NodeState,
    cloud_labels,
    cpu_reserved,
    initialization,
    kubelet_labels,
    pool_node,
    registration,
    resources,
    spare_node,
    status,
)
from kaito.sandbox.pools import Pool
from kaito.sandbox.site import Site
from kaito.sandbox.vm_sizes import vm_size

SITE = Site(subscription_id="s", resource_group="rg", cluster="c")
VMSS = f"aks-ws1-{SITE.vmss_digits}-vmss"
THEN, NOW = "2027-01-15T08:00:03Z", "2027-01-15T08:00:05Z"


def node(index: int = 0, *, size: str = "Standard_NC6s_v3", **properties: object) -> NodeSpec:
    found = vm_size(size)
    assert found is not None
    pool = Pool("ws1", found, 1, properties, "Creating", '"x"')
    return pool_node(pool, SITE, index, "10.224.0.5")


def test_a_node_is_named_after_its_scale_set_and_instance():
    """P4.9, P4.10: aks-<pool>-<8 digits>-vmss and six characters in base 36."""
    assert [node(index).name for index in (0, 10, 36)] == [
        f"{VMSS}000000",
        f"{VMSS}00000a",
        f"{VMSS}000010",
    ]
    assert len(SITE.vmss_digits) == 8


def test_the_provider_id_names_the_instance_in_the_node_resource_group():
    """P4.9."""
    assert node(3).provider_id == (
        "azure:///subscriptions/s/resourceGroups/MC_rg_c_eastus/providers/Microsoft.Compute"
        f"/virtualMachineScaleSets/{VMSS}/virtualMachines/3"
    )


def test_a_node_registers_uninitialized_not_ready_and_without_provider_id():
    """P7.1, P7.5."""
    found = registration(node(nodeTaints=["sku=gpu:NoSchedule", "a=:NoExecute"]), SITE, THEN)
    assert found["spec"] == {
        "taints": [
            {"key": "sku", "value": "gpu", "effect": "NoSchedule"},
            {"key": "a", "effect": "NoExecute"},
            {
                "key": "node.cloudprovider.kubernetes.io/uninitialized",
                "value": "true",
                "effect": "NoSchedule",
            },
        ]
    }
    (ready,) = [c for c in found["status"]["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "KubeletNotReady")
    assert "topology.kubernetes.io/zone" not in found["metadata"]["labels"]
    assert found["status"]["addresses"] == [{"type": "Hostname", "address": f"{VMSS}000000"}]
    assert "nvidia.com/gpu" not in found["status"]["capacity"]


def test_a_gpu_node_carries_the_labels_of_the_table():
    """P7.3, what the kubelet brings; the pool's own labels among them."""
    labels = kubelet_labels(node(nodeLabels={"kaito.sh/workspace": "phi", "agentpool": "x"}), SITE)
    uuid = labels.pop("kubernetes.azure.com/kubelet-identity-client-id")
    assert len(uuid) == 36
    assert labels == {
        "kaito.sh/workspace": "phi",
        "agentpool": "ws1",
        "kubernetes.azure.com/agentpool": "ws1",
        "kubernetes.azure.com/cluster": "MC_rg_c_eastus",
        "kubernetes.azure.com/mode": "user",
        "kubernetes.azure.com/role": "agent",
        "kubernetes.azure.com/managedby": "aks",
        "kubernetes.azure.com/nodepool-type": "VirtualMachineScaleSets",
        "kubernetes.azure.com/node-image-version": "AKSUbuntu-2204gen2containerd-202601.13.0",
        "kubernetes.azure.com/os-sku": "Ubuntu",
        "kubernetes.azure.com/os-sku-effective": "Ubuntu2204",
        "kubernetes.azure.com/os-sku-requested": "Ubuntu",
        "kubernetes.azure.com/storageprofile": "managed",
        "kubernetes.azure.com/storagetier": "Premium_LRS",
        "storageprofile": "managed",
        "storagetier": "Premium_LRS",
        "kubernetes.azure.com/accelerator": "nvidia",
        "accelerator": "nvidia",
        "kubernetes.azure.com/sku-cpu": "6",
        "kubernetes.azure.com/sku-memory": "114688",
        "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
        "beta.kubernetes.io/instance-type": "Standard_NC6s_v3",
        "kubernetes.io/hostname": f"{VMSS}000000",
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": "amd64",
        "beta.kubernetes.io/os": "linux",
    }


def test_a_cpu_node_is_no_accelerator():
    """P7.3: GPU sizes only."""
    labels = kubelet_labels(node(size="Standard_D4s_v3"), SITE)
    assert not [key for key in labels if "accelerator" in key]


def test_a_spot_node_is_labelled_and_tainted():
    """P7.3, P7.5."""
    found = registration(node(scaleSetPriority="Spot"), SITE, THEN)
    key = "kubernetes.azure.com/scalesetpriority"
    assert found["metadata"]["labels"][key] == "spot"
    assert {"key": key, "value": "spot", "effect": "NoSchedule"} in found["spec"]["taints"]


@pytest.mark.parametrize(
    ("zones", "index", "zone", "csi"),
    [
        (None, 0, "0", ""),
        (["1"], 0, "eastus-1", "eastus-1"),
        (["1", "3"], 1, "eastus-3", "eastus-3"),
    ],
)
def test_the_cloud_labels_where_the_vm_is(zones, index, zone, csi):
    """P7.3: a zone, or the fault domain 0."""
    assert cloud_labels(node(index, availabilityZones=zones), SITE) == {
        "topology.kubernetes.io/region": "eastus",
        "failure-domain.beta.kubernetes.io/region": "eastus",
        "topology.kubernetes.io/zone": zone,
        "failure-domain.beta.kubernetes.io/zone": zone,
        "topology.disk.csi.azure.com/zone": csi,
    }


def test_initialization_sets_the_provider_id_and_lifts_its_own_taint_only():
    """P7.1: not-ready is the node lifecycle controller's (P7.2)."""
    not_ready = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule", "timeAdded": THEN}
    cloud = {"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"}
    body = initialization(node(), SITE, taints=[not_ready, cloud], resource_version="7")
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["spec"] == {"providerID": node().provider_id, "taints": [not_ready]}
    assert "csi.volume.kubernetes.io/nodeid" in body["metadata"]["annotations"]


def test_a_ready_node_has_its_gpus_its_address_and_no_problem():
    """P7.6, P7.7, P7.8."""
    state = NodeState(is_initialized=True, ready="True", gpu_capacity=1, gpu_allocatable=1)
    found = status(node(), state, SITE, joined_at=THEN, now=NOW)
    assert {"type": "InternalIP", "address": "10.224.0.5"} in found["addresses"]
    assert found["capacity"]["nvidia.com/gpu"] == found["allocatable"]["nvidia.com/gpu"] == "1"
    true = [c["type"] for c in found["conditions"] if c["status"] == "True"]
    assert true == ["Ready"]
    times = {c["type"]: c["lastTransitionTime"] for c in found["conditions"]}
    assert (times["Ready"], times["DiskPressure"]) == (NOW, THEN)
    assert found["daemonEndpoints"] == {"kubeletEndpoint": {"Port": 10250}}
    assert found["nodeInfo"]["kubeletVersion"] == "v1.34.1"
    assert found["nodeInfo"]["osImage"] == "Ubuntu 22.04.5 LTS"


def test_a_dead_plugin_leaves_the_capacity_and_nothing_to_allocate():
    """P7.8."""
    state = NodeState(is_initialized=True, ready="True", gpu_capacity=2)
    found = status(node(size="Standard_NC12s_v3"), state, SITE, joined_at=THEN, now=NOW)
    assert found["capacity"]["nvidia.com/gpu"] == "2"
    assert found["allocatable"]["nvidia.com/gpu"] == "0"


def test_a_vm_that_will_be_evicted_says_so():
    """P7.11."""
    state = NodeState(is_initialized=True, ready="Unknown", is_eviction_scheduled=True)
    found = status(node(), state, SITE, joined_at=THEN, now=NOW)
    rows = {c["type"]: (c["status"], c["reason"]) for c in found["conditions"]}
    assert rows["VMEventScheduled"] == ("True", "PreemptScheduled")
    assert rows["Ready"] == ("Unknown", "NodeStatusUnknown")


def test_azure_linux_nodes_say_what_they_run():
    """P7.3, P7.6."""
    linux = node(osSKU="AzureLinux")
    labels = kubelet_labels(linux, SITE)
    assert labels["kubernetes.azure.com/os-sku-effective"] == "AzureLinux3"
    assert status(linux, NodeState(), SITE, joined_at=THEN, now=THEN)["nodeInfo"]["osImage"] == (
        "Microsoft Azure Linux 3.0"
    )


def test_capacity_and_what_the_system_keeps_of_it():
    """P7.8."""
    capacity, allocatable = resources(node(osDiskSizeGB=128))
    assert capacity["ephemeral-storage"] == "129886128Ki"
    assert allocatable["ephemeral-storage"] == str(129886128 * 1024 * 9 // 10)
    assert (capacity["cpu"], allocatable["cpu"]) == ("6", "5840m")
    assert (capacity["pods"], allocatable["pods"]) == ("110", "110")
    memory = [int(table["memory"].removesuffix("Ki")) for table in (capacity, allocatable)]
    assert memory[0] - memory[1] == (20 * 110 + 50 + 100) * 1024
    assert memory[0] < 112 * 1024 * 1024


@pytest.mark.parametrize(
    ("vcpus", "millicores"),
    [(1, 60), (2, 100), (3, 120), (4, 140), (8, 180), (16, 260), (32, 420), (64, 740), (96, 1060)],
)
def test_reserved_cpu_is_linear_between_the_rows(vcpus, millicores):
    """P7.8."""
    assert cpu_reserved(vcpus) == millicores


def test_a_spare_node_is_of_no_pool():
    """design.md §9: spare."""
    size = vm_size("Standard_NC6s_v3")
    assert size is not None
    spare = spare_node("own1", size, {"apps": "phi"}, SITE, "10.224.0.9")
    labels = kubelet_labels(spare, SITE)
    assert labels["apps"] == "phi"
    assert labels["node.kubernetes.io/instance-type"] == "Standard_NC6s_v3"
    assert not [key for key in labels if "agentpool" in key or "kubernetes.azure.com" in key]
    assert spare.provider_id.endswith("/virtualMachines/own1")


@pytest.mark.parametrize(
    ("name", "vcpus", "memory_gib", "gpus", "family", "disk_gb"),
    [
        ("standard_nc12s_V3", 12, 224, 2, "standardNCSv3Family", 256),
        ("Standard_NC64as_T4_v3", 64, 440, 4, "Standard NCASv3_T4 Family", 1024),
        ("Standard_NC24ads_A100_v4", 24, 220, 1, "StandardNCADSA100v4Family", 512),
        ("Standard_NC6", 6, 24, 1, "standardNCFamily", 128),
        ("Standard_D4s_v3", 4, 16, 0, "standardDSv3Family", 128),
        ("Standard_E8-2ds_v5", 8, 32, 0, "standardEDSv5Family", 256),
    ],
)
def test_vm_sizes_are_the_catalogue_s_or_read_off_the_name(
    name, vcpus, memory_gib, gpus, family, disk_gb
):
    """P7.9, P4.6."""
    size = vm_size(name)
    assert size is not None
    assert (size.vcpus, size.memory_gib, size.gpu_count) == (vcpus, memory_gib, gpus)
    assert (size.family, size.default_disk_gb) == (family, disk_gb)


def test_amd_gpus_are_not_nvidia_s():
    size = vm_size("Standard_NG32ads_V620_v1")
    assert size is not None
    assert size.gpu_count == 0


@pytest.mark.parametrize("name", ["", "NC6", "Standard_", "p3.2xlarge", "Standard_NC6 v3"])
def test_other_words_are_no_vm_size(name):
    assert vm_size(name) is None
