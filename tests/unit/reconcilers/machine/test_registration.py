"""From a machine to its Node, and from there to one fit for pods."""

import pytest

from kaito.api.views import Taint
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Patch, RemoveFinalizer
from kaito.reconcilers.chain import Step
from kaito.reconcilers.machine.state import MachineSettings
from kaito.reconcilers.machine.steps.initialization import initialization
from kaito.reconcilers.machine.steps.registration import registration, status_fields
from kaito.reconcilers.machine.steps.release import held
from tests.unit.reconcilers.machine.builders import (
    claim,
    instance,
    launched_and_registered,
    node,
    said,
    state,
)

READY = instance(InstanceState.READY)


def verdict(step: Step) -> tuple[str, str]:
    (condition,) = step.conditions
    return condition.status, condition.reason


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("False", "MachineNotLaunched")),
        ({"instance": READY}, ("False", "NodeNotFound")),
        ({"instance": READY, "nodes": (node(provider_id=""),)}, ("False", "NodeNotFound")),
        ({"instance": READY, "nodes": (node(deleting=True),)}, ("False", "NodeNotFound")),
        ({"instance": READY, "nodes": (node("a"), node("b"))}, ("False", "MultipleNodesFound")),
        ({"instance": READY, "nodes": (node(),)}, ("False", "NodeNotFound")),
        ({"instance": READY, "nodes": (node(marked=True),)}, ("True", "")),
        ({"instance": READY, "nodes": (node(marked=True), node("b", deleting=True))}, ("True", "")),
    ],
    ids=[
        "not launched",
        "no node",
        "no provider id yet",
        "node being deleted",
        "two nodes",
        "not marked yet",
        "marked",
        "spare node going",
    ],
)
def test_registered_is_exactly_one_marked_node(given: dict, expected: tuple[str, str]):
    """P1.6, P4.10, P7.1."""
    assert verdict(registration(state(**given))) == expected


def test_a_node_is_marked_in_one_patch_that_keeps_what_others_put_there():
    """P2.1, W31, G12."""
    step = registration(state(instance=READY, nodes=(node(),)))
    (patch,) = step.actions
    assert isinstance(patch, Patch)
    metadata = patch.body["metadata"]
    assert metadata["finalizers"] == ["karpenter.sh/termination"]
    (owner,) = metadata["ownerReferences"]
    assert owner["uid"] == "uid-1"
    assert owner["blockOwnerDeletion"]
    assert metadata["labels"]["karpenter.sh/registered"] == "true"
    assert metadata["labels"]["kaito.sh/workspace-uid"] == "workspace-uid"
    assert patch.resource_version == "3"
    assert step.requeue_after == 0


def test_a_marked_node_gives_the_claim_its_columns_once():
    """P1.3, P3.6."""
    marked = node(marked=True, labels={"topology.kubernetes.io/zone": "eastus-1"})
    (patch,) = registration(state(instance=READY, nodes=(marked,))).actions
    assert isinstance(patch, Patch)
    labels = patch.body["metadata"]["labels"]
    assert labels == {
        "node.kubernetes.io/instance-type": "Standard_NC6s_v3",
        "karpenter.k8s.azure/zone": "eastus-1",
    }
    named = claim(labels={"kaito.sh/workspace": "phi", **labels})
    assert registration(state(named, instance=READY, nodes=(marked,))).actions == ()


def test_status_copies_the_node_only_once_it_is_bound():
    """P1.10, P1.19."""
    assert status_fields(state(instance=READY, nodes=(node(),))) == {}
    assert status_fields(state(instance=READY, nodes=(node(marked=True),))) == {
        "nodeName": "aks-node-0",
        "providerID": "azure:///0",
        "capacity": {"cpu": "6"},
        "allocatable": {"cpu": "6"},
    }


def test_a_lost_node_does_not_undo_the_registration():
    """G8: Ready tells of it; nothing is given up here."""
    made = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    assert verdict(registration(state(made))) == ("True", "")


def test_a_node_deleted_under_a_live_claim_is_let_go():
    """G8: AKS reimages a VM in place; the Node that comes back needs the name."""
    made = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    step = held(state(made, nodes=(node(marked=True, deleting=True),)))
    (release,) = step.actions
    assert isinstance(release, RemoveFinalizer)
    assert release.ref.kind == "Node"


def initialized_if(given: Step) -> tuple[str, str, str]:
    (condition,) = given.conditions
    return condition.status, condition.reason, condition.message


@pytest.mark.parametrize(
    ("made", "on_node", "expected"),
    [
        (claim(), {"ready": False}, ("NodeNotReady", "Node status is NotReady")),
        (
            claim(spec={"startupTaints": [{"key": "boot", "effect": "NoSchedule"}]}),
            {"taints": (Taint("boot", "NoSchedule"),)},
            ("StartupTaintsExist", 'StartupTaint "boot:NoSchedule" still exists'),
        ),
        (
            claim(),
            {"taints": (Taint("node.kubernetes.io/not-ready", "NoSchedule"),)},
            (
                "KnownEphemeralTaintsExist",
                'KnownEphemeralTaint "node.kubernetes.io/not-ready:NoSchedule" still exists',
            ),
        ),
        (
            claim(spec={"resources": {"requests": {"nvidia.com/gpu": "1", "storage": "1Gi"}}}),
            {},
            ("ResourceNotRegistered", 'Resource "nvidia.com/gpu" was requested but not registered'),
        ),
    ],
    ids=["not ready", "startup taint", "ephemeral taint", "resource"],
)
def test_initialized_waits_for_each_in_order(made, on_node: dict, expected: tuple[str, str]):
    """P1.6, P1.8, P1.9."""
    found = initialization(state(made, instance=READY, nodes=(node(marked=True, **on_node),)))
    assert initialized_if(found) == ("False", *expected)


def test_nothing_is_initialized_before_it_is_registered():
    """P1.6."""
    assert initialized_if(initialization(state()))[1] == "MachineNotLaunched"
    unmarked = state(instance=READY, nodes=(node(),))
    assert initialized_if(initialization(unmarked))[1] == "NodeNotFound"


def test_gpus_are_waited_for_only_where_that_is_set():
    """P1.9, W33: the device plugin is not ours."""
    bare = (node(marked=True, labels={"kaito.sh/machine-type": "gpu"}),)
    patient = MachineSettings(wait_for_gpu=True)
    found = initialization(state(instance=READY, nodes=bare, settings=patient))
    assert initialized_if(found)[1] == "ResourceNotRegistered"
    assert initialization(state(instance=READY, nodes=bare)).actions


def test_the_node_is_labelled_first_and_the_claim_told_when_that_is_seen():
    """P1.6: True means the Node is labelled initialized."""
    step = initialization(state(instance=READY, nodes=(node(marked=True),)))
    (patch,) = step.actions
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["labels"] == {"karpenter.sh/initialized": "true"}
    assert (step.done, step.requeue_after) == (False, 0)
    labelled = node(marked=True, labels={"karpenter.sh/initialized": "true"})
    assert initialization(state(instance=READY, nodes=(labelled,))).done


def test_once_initialized_it_stays():
    """W29: what the Node does later is Ready's business."""
    made = claim(conditions=(said("MachineInitialized"),))
    assert initialization(state(made, nodes=(node(ready=False),))).done
