"""From a claim's order to the body of the PUT."""

from typing import Any

import pytest

from kaito.errors import CloudError
from kaito.provisioner.backends.agentpool.pools import instance
from kaito.provisioner.backends.agentpool.request import (
    agent_pool,
    is_accepted_label,
    machine_type,
    os_disk_gb,
    parse_time_label,
)
from kaito.provisioner.interface import InstanceState, LaunchRequest, Taint

GIB = 2**30
CREATED = 1_769_851_800.0  # 2026-01-31T09:30:00Z


def order(**changes: Any) -> LaunchRequest:
    given: dict[str, Any] = {
        "name": "ws0a1b2c3d4",
        "claim_uid": "uid-1",
        "instance_type": "Standard_NC6s_v3",
        "storage_bytes": 50 * GIB,
        "labels": {
            "karpenter.sh/provisioner-name": "default",
            "kaito.sh/workspace": "phi",
            "kaito.sh/workspacenamespace": "default",
            "apps": "phi-3",
        },
        "taints": (Taint("sku", "NoSchedule", "gpu"),),
        "claim_created_at": CREATED,
        "launched_at": CREATED + 5,
    }
    return LaunchRequest(**(given | changes))


def test_default_body_is_the_originals_and_our_marks():
    """P4.2, P2.4, G10."""
    assert agent_pool(order()) == {
        "properties": {
            "count": 1,
            "type": "VirtualMachineScaleSets",
            "vmSize": "Standard_NC6s_v3",
            "osType": "Linux",
            "osDiskSizeGB": 50,
            "nodeLabels": {
                "karpenter.sh/provisioner-name": "default",
                "kaito.sh/workspace": "phi",
                "kaito.sh/workspacenamespace": "default",
                "apps": "phi-3",
                "kaito.sh/machine-type": "gpu",
                "kaito.sh/creation-timestamp": "2026-01-31T09-30-00Z",
                "kaito.sh/claim-uid": "uid-1",
                "kaito.sh/launched-at": "2026-01-31T09-30-05Z",
            },
            "nodeTaints": ["sku=gpu:NoSchedule"],
        }
    }


def test_no_storage_leaves_the_disk_to_the_service_and_no_taints_are_an_empty_list():
    """U2, P4.3."""
    properties = agent_pool(order(storage_bytes=0, taints=()))["properties"]
    assert "osDiskSizeGB" not in properties
    assert properties["nodeTaints"] == []


def test_an_empty_taint_value_keeps_its_equals_sign():
    """P4.3."""
    body = agent_pool(order(taints=(Taint("a", "NoExecute"),)))
    assert body["properties"]["nodeTaints"] == ["a=:NoExecute"]


@pytest.mark.parametrize(
    ("given", "sku"),
    [("", None), ("AzureLinux", "AzureLinux"), ("azurelinux", "AzureLinux"), ("x", "Ubuntu")],
)
def test_image_family_is_only_sent_when_the_claim_has_one(given: str, sku: str | None):
    """P4.4, U28."""
    assert agent_pool(order(image_family=given))["properties"].get("osSKU") == sku


@pytest.mark.parametrize(
    ("storage", "disk_gb"),
    [
        (0, 0),
        (34 * GIB, 34),
        (50 * GIB, 50),
        (100 * GIB, 100),
        (400, 400),
        (512 * 2**20, 30),
        (50 * 10**9, 47),
        (30 * GIB, 30),
        (2048, 2048),
        (2048 * GIB, 2048),
    ],
)
def test_os_disk_arithmetic_does_not_overflow(storage: int, disk_gb: int):
    """P4.6, W9."""
    assert os_disk_gb(storage) == disk_gb


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "toolongname13"}, "InvalidName"),
        ({"name": ""}, "InvalidName"),
        ({"name": "1abc"}, "InvalidName"),
        ({"name": "has-dash"}, "InvalidName"),
        ({"instance_type": ""}, "InvalidRequirement"),
        ({"storage_bytes": 3 * 2**40}, "InvalidDiskSize"),
    ],
)
def test_what_azure_cannot_take_is_terminal_before_any_call(changes: dict[str, Any], reason: str):
    """P4.1, P4.3, P4.6, U25, U26."""
    with pytest.raises(CloudError) as caught:
        agent_pool(order(**changes))
    assert (caught.value.reason, caught.value.terminal) == (reason, True)
    assert caught.value.remedy


def test_labels_of_azures_and_kubernetes_domains_are_left_out():
    """P2.2."""
    assert not is_accepted_label("kubernetes.azure.com/mode")
    assert not is_accepted_label("kubernetes.io/arch")
    assert not is_accepted_label("node.kubernetes.io/instance-type")
    assert is_accepted_label("apps")
    assert is_accepted_label("notkubernetes.io/x")


def test_a_label_of_the_claim_cannot_pose_as_our_mark():
    """P2.4: who owns a VM is not the user's to write."""
    labels = {"kaito.sh/claim-uid": "someone", "kaito.sh/machine-type": "cpu"}
    sent = agent_pool(order(labels=labels))["properties"]["nodeLabels"]
    assert sent["kaito.sh/claim-uid"] == "uid-1"
    assert sent["kaito.sh/machine-type"] == "gpu"


def test_machine_type_is_read_off_the_size_case_sensitively():
    """P2.1."""
    assert [machine_type(s) for s in ("Standard_NC6s_v3", "Standard_D4s_v5", "standard_nc6")] == [
        "gpu",
        "cpu",
        "cpu",
    ]


def pool(labels: dict[str, str], **properties: Any) -> dict[str, Any]:
    return {"name": "p", "properties": {"nodeLabels": labels, **properties}}


@pytest.mark.parametrize(
    ("labels", "ours"),
    [
        ({"kaito.sh/claim-uid": "u"}, True),
        ({"kaito.sh/workspace": "w", "karpenter.sh/provisioner-name": "default"}, True),
        ({"kaito.sh/ragengine": "r", "karpenter.sh/nodepool": "kaito"}, True),
        ({"kaito.sh/workspace": "w"}, False),
        ({"karpenter.sh/nodepool": "other"}, False),
        ({}, False),
    ],
)
def test_ownership_is_read_from_the_pools_labels(labels: dict[str, str], ours: bool):
    """P2.4, W8."""
    assert instance(pool(labels)).is_ours is ours


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        ("Creating", InstanceState.CREATING),
        ("Succeeded", InstanceState.READY),
        ("Failed", InstanceState.FAILED),
        ("Canceled", InstanceState.FAILED),
        ("Deleting", InstanceState.DELETING),
        ("Upgrading", InstanceState.BUSY),
        ("SomethingNew", InstanceState.BUSY),
    ],
)
def test_unknown_provisioning_states_count_as_busy(raw: str, state: InstanceState):
    """P5.11."""
    assert instance(pool({}, provisioningState=raw)).state is state


def test_a_failed_pool_tells_its_cause_and_a_bare_one_still_reads():
    """P5.18, W17."""
    error = {"code": "AllocationFailed", "message": "none left"}
    failed = instance(pool({}, provisioningState="Failed", status={"provisioningError": error}))
    assert failed.fault is not None
    assert failed.fault.reason == "CapacityUnavailable"
    assert instance({}).state is InstanceState.BUSY


def test_launch_time_comes_back_from_the_label():
    """G10, U35."""
    label = agent_pool(order())["properties"]["nodeLabels"]["kaito.sh/launched-at"]
    assert parse_time_label(label) == CREATED + 5
    assert parse_time_label("nonsense") is None
    assert parse_time_label(None) is None
