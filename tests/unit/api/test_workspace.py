from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from kaito.api.machine import Machine, decode_machine
from kaito.api.meta import Undecodable
from kaito.api.workspace import LabelSelector, Workspace, decode_workspace


def raw(**sections: Any) -> bytes:
    return json.dumps({"metadata": {"name": "w", "namespace": "ns"}} | sections).encode()


def read(**sections: Any) -> Workspace:
    found = decode_workspace(raw(**sections))
    assert isinstance(found, Workspace)
    return found


def test_a_workspace_is_read_with_the_originals_defaults() -> None:
    """Facts §2: count 1, Standard_NC12s_v3, public."""
    found = read(
        resource={"labelSelector": {"matchLabels": {"apps": "phi"}}},
        inference={"preset": {"name": "p"}},
    )
    assert found.metadata.key == ("ns", "w")
    assert found.resource is not None
    assert (found.resource.count, found.resource.instance_type) == (1, "Standard_NC12s_v3")
    assert found.inference is not None
    assert found.inference.preset is not None
    assert found.inference.preset.access_mode == "public"
    assert found.status.conditions == ()


def test_status_is_read_back_as_it_was_written() -> None:
    found = read(
        status={
            "observedGeneration": 3,
            "workerNodes": ["a"],
            "nodes": [{"slot": 0, "claim": "ws0", "instanceType": "S", "asks": 2}],
            "conditions": [{"type": "ResourceReady", "status": "True", "reason": "r"}],
        }
    )
    assert found.status.observed_generation == 3
    assert found.status.nodes[0].asks == 2
    assert found.status.conditions[0].type == "ResourceReady"


def test_fields_of_a_newer_release_are_no_obstacle() -> None:
    assert read(resource={"labelSelector": {}, "fromTomorrow": 1}).resource is not None


def test_a_value_out_of_range_is_read_and_left_to_validation() -> None:
    """Facts §14: old objects stay readable; their faults become conditions."""
    found = read(resource={"count": 0}, inference={"preset": {"name": "p", "accessMode": "x"}})
    assert found.resource is not None
    assert found.resource.count == 0


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"resource": {"count": "two"}}, "resource.count cannot be read: "),
        ({"resource": []}, "resource cannot be read: it should be a map"),
        (
            {"resource": {"preferredNodes": "n"}},
            "resource.preferredNodes cannot be read: it should be a list",
        ),
        ({"inference": {"preset": {}}}, "inference.preset.name cannot be read: it is missing"),
        ({"inference": {"adapters": [{"strength": {}}]}}, "inference.adapters.0.strength"),
        ({"tuning": {"input": {}}}, "tuning.output"),
        ({"status": {"conditions": [{"type": 1}]}}, "status.conditions"),
    ],
)
def test_what_cannot_be_read_keeps_its_name_and_says_which_field(
    sections: dict[str, Any], field: str
) -> None:
    found = decode_workspace(raw(**sections))
    assert isinstance(found, Undecodable)
    assert found.metadata.name == "w"
    assert found.error.startswith(field)


def test_several_unreadable_fields_are_counted() -> None:
    found = decode_workspace(raw(resource={"count": "x", "preferredNodes": 3}))
    assert isinstance(found, Undecodable)
    assert found.error.endswith("(and 1 more)")


def test_an_object_without_a_name_of_its_own_raises_the_decoders_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_workspace(b'{"resource":{}}')


def test_a_workspace_is_immutable() -> None:
    found = read(resource={"labelSelector": {}})
    with pytest.raises(ValidationError, match="frozen"):
        found.resource = None  # type: ignore[misc]


def test_a_selector_becomes_labels() -> None:
    """C7: matchLabels, or In with one value."""
    selector = LabelSelector.model_validate(
        {
            "matchLabels": {"a": "1"},
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["2"]},
                {"key": "c", "operator": "In", "values": ["3", "4"]},
                {"key": "d", "operator": "Exists"},
            ],
        }
    )
    assert selector.labels() == {"a": "1", "b": "2"}


def test_a_machine_answers_as_a_claim() -> None:
    found = decode_machine(
        raw(
            spec={
                "requirements": [
                    {
                        "key": "node.kubernetes.io/instance-type",
                        "operator": "In",
                        "values": ["Standard_NC6s_v3"],
                    }
                ],
                "resources": {"requests": {"storage": "50Gi", "cpu": 1}},
                "taints": [{"key": "sku", "effect": "NoSchedule", "value": "gpu"}],
                "startupTaints": [{"key": "x", "effect": "NoExecute"}],
                "kubelet": {"maxPods": 30, "imageGCLowThresholdPercent": 5, "cpuCFSQuota": True},
            },
            status={
                "nodeName": "n",
                "providerID": "p",
                "conditions": [{"type": "Ready", "status": "False", "severity": ""}],
            },
        )
    )
    assert isinstance(found, Machine)
    assert found.instance_type == "Standard_NC6s_v3"
    assert (found.node_name, found.provider_id) == ("n", "p")
    assert found.requests == {"storage": "50Gi", "cpu": 1}
    assert found.taints[0].value == "gpu"
    assert found.startup_taints[0].key == "x"
    assert found.conditions[0].status == "False"
    assert found.spec.kubelet is not None
    assert found.spec.kubelet.image_gc_low_threshold_percent == 5


def test_a_machine_without_spec_is_a_machine() -> None:
    """P1.1: nothing is required at the top, not even spec."""
    found = decode_machine(raw())
    assert isinstance(found, Machine)
    assert found.instance_type == ""
