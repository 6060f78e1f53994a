"""What the real API server says to our CRDs: structure, defaults, immutability, old objects."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kaito.api.crd import machine_crd, workspace_crd
from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.errors import InvalidRequest
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.crds import CRDS, install_crds

pytestmark = pytest.mark.controlplane

WORKSPACES = Kind("kaito.sh", "v1alpha1", "Workspace", "workspaces", True, decode_owned)
MACHINES = Kind("karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_owned)

RESOURCE = {"instanceType": "Standard_NC6s_v3", "labelSelector": {"matchLabels": {"apps": "phi"}}}
INFERENCE = {"preset": {"name": "phi-3-mini-4k-instruct"}}
TUNING = {
    "preset": {"name": "phi-3-mini-4k-instruct"},
    "method": "qlora",
    "input": {"urls": ["https://example.com/data.parquet"]},
    "output": {"image": "registry.example.com/tuned:0.0.1", "imagePushSecret": "push"},
}
TEMPLATE = {"spec": {"containers": [{"name": "c", "image": "i", "fieldOfTomorrow": {"a": [1]}}]}}


@pytest.fixture
async def kube(real_kube: KubeClient, tmp_path: Path) -> KubeClient:
    await install(real_kube, tmp_path, workspace_crd(), machine_crd())
    return real_kube


async def install(kube: KubeClient, folder: Path, *crds: Mapping[str, Any]) -> None:
    for crd in crds:
        (folder / f"{crd['metadata']['name']}.yaml").write_text(json.dumps(crd))
    await install_crds(kube, clock=SystemClock(), folder=folder)


def workspace(name: str = "w", **sections: Any) -> dict[str, Any]:
    base = {"apiVersion": "kaito.sh/v1alpha1", "kind": "Workspace"}
    return base | {"metadata": {"name": name, "namespace": "default"}} | sections


def inference(**changes: Any) -> dict[str, Any]:
    return {"resource": RESOURCE, "inference": INFERENCE | changes}


def tuning(**changes: Any) -> dict[str, Any]:
    return {"resource": RESOURCE, "tuning": TUNING | changes}


def without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


REFUSED_ON_CREATE = {
    "no resource": ({"inference": INFERENCE}, "resource", "labelSelector"),
    "no selector": (
        {"resource": {"instanceType": "Standard_NC6s_v3"}, "inference": INFERENCE},
        "resource.labelSelector",
        "Required",
    ),
    "count 0": (
        {"resource": RESOURCE | {"count": 0}, "inference": INFERENCE},
        "resource.count",
        "greater than or equal to 1",
    ),
    "count 1001": (
        {"resource": RESOURCE | {"count": 1001}, "inference": INFERENCE},
        "resource.count",
        "less than or equal to 1000",
    ),
    "neither inference nor tuning": ({"resource": RESOURCE}, "", "inference or tuning"),
    "inference and tuning": (
        {"resource": RESOURCE, "inference": INFERENCE, "tuning": TUNING},
        "",
        "together",
    ),
    "neither preset nor template": (
        {"resource": RESOURCE, "inference": {}},
        "inference",
        "preset or a template",
    ),
    "preset and template": (inference(template=TEMPLATE), "inference", "together"),
    "preset without name": (inference(preset={}), "inference.preset.name", "Required"),
    "unknown access mode": (
        inference(preset={"name": "x", "accessMode": "secret"}),
        "inference.preset.accessMode",
        "public",
    ),
    "eleven adapters": (
        inference(adapters=[{"source": {"name": f"a{i}", "image": "r/a:1"}} for i in range(11)]),
        "inference.adapters",
        "10",
    ),
    "adapter from two places": (
        inference(adapters=[{"source": {"urls": ["https://a"], "image": "r/a:1"}}]),
        "inference.adapters[0].source",
        "exactly one",
    ),
    "tuning without input": (
        {"resource": RESOURCE, "tuning": without(TUNING, "input")},
        "tuning.input",
        "Required",
    ),
    "tuning without output": (
        {"resource": RESOURCE, "tuning": without(TUNING, "output")},
        "tuning.output",
        "Required",
    ),
    "tuning without preset": (
        {"resource": RESOURCE, "tuning": without(TUNING, "preset")},
        "tuning",
        "preset",
    ),
    "tuning without method": (
        {"resource": RESOURCE, "tuning": without(TUNING, "method")},
        "tuning",
        "method",
    ),
    "unknown method": (tuning(method="full"), "tuning.method", "lora or qlora"),
    "tuning on two nodes": (
        {"resource": RESOURCE | {"count": 2}, "tuning": TUNING},
        "resource.count",
        "one node",
    ),
    "volume as input": (tuning(input={"volumeSource": {}}), "tuning.input", "not supported"),
    "output without secret": (
        tuning(output={"image": "r/t:1"}),
        "tuning.output",
        "imagePushSecret",
    ),
    "output without image": (tuning(output={}), "tuning.output", "image"),
    "wrong type": (
        {"resource": RESOURCE | {"count": "two"}, "inference": INFERENCE},
        "resource.count",
        "integer",
    ),
}


@pytest.mark.parametrize("case", REFUSED_ON_CREATE)
async def test_what_the_schema_refuses_is_refused_with_the_field_named(
    kube: KubeClient, case: str
) -> None:
    """C1, C2, C8, C9, C13, C15, C16, C18 to C20 of the facts, and count >= 1."""
    sections, field, words = REFUSED_ON_CREATE[case]
    with pytest.raises(InvalidRequest) as refused:
        await kube.create(WORKSPACES, workspace("refused", **sections))
    assert field in str(refused.value)
    assert words in str(refused.value)


ADMITTED = {
    "unknown preset": inference(preset={"name": "no-such-model"}),
    "bad instance type": {
        "resource": RESOURCE | {"instanceType": "Huge_Machine"},
        "inference": INFERENCE,
    },
    "empty selector": {"resource": {"labelSelector": {}}, "inference": INFERENCE},
    "selector by expressions": {
        "resource": {
            "labelSelector": {"matchExpressions": [{"key": "apps", "operator": "Exists"}]}
        },
        "inference": INFERENCE,
    },
    "private preset without image": inference(preset={"name": "x", "accessMode": "private"}),
    "method in capitals": tuning(method="QLoRA"),
    "adapter without source": inference(adapters=[{"strength": "0.5"}]),
    "volume in a template": {"resource": RESOURCE, "inference": {"template": TEMPLATE}},
    "many replicas": {"resource": RESOURCE | {"count": 3}, "inference": INFERENCE},
}


@pytest.mark.parametrize("case", ADMITTED)
async def test_what_becomes_a_condition_is_admitted(kube: KubeClient, case: str) -> None:
    """Issue 10: an unknown preset, a bad instance type, an empty selector get a condition."""
    made = await kube.create(WORKSPACES, workspace("admitted", **ADMITTED[case]))
    await kube.delete(WORKSPACES, "default", "admitted", uid=made.metadata.uid)


async def test_only_three_defaults_are_served(kube: KubeClient) -> None:
    """Facts §2: count, instanceType, accessMode; nothing that would change a revision's hash."""
    sections = {"resource": {"labelSelector": {}}, "inference": {"preset": {"name": "p"}}}
    made = await kube.create(WORKSPACES, workspace("defaults", **sections))
    await kube.delete(WORKSPACES, "default", "defaults")
    assert made.body["resource"] == {
        "count": 1,
        "instanceType": "Standard_NC12s_v3",
        "labelSelector": {},
    }
    assert made.body["inference"] == {"preset": {"name": "p", "accessMode": "public"}}
    assert "status" not in made.body


async def test_unknown_fields_of_a_pod_template_are_kept(kube: KubeClient) -> None:
    """Facts §2: templates of any Kubernetes version pass through."""
    sections = {"resource": RESOURCE, "inference": {"template": TEMPLATE}}
    made = await kube.create(WORKSPACES, workspace("template", **sections))
    await kube.delete(WORKSPACES, "default", "template")
    assert made.body["inference"] == {"template": TEMPLATE}


REFUSED_EDITS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "count": (inference(), {"resource": {"count": 2}}, "resource.count"),
    "instance type": (
        inference(),
        {"resource": {"instanceType": "Standard_NC12s_v3"}},
        "resource.instanceType",
    ),
    "selector": (
        inference(),
        {"resource": {"labelSelector": {"matchLabels": {"apps": "other"}}}},
        "resource.labelSelector",
    ),
    "resource taken away": (inference(), {"resource": None}, "resource"),
    "preset name": (inference(), {"inference": {"preset": {"name": "x"}}}, "inference.preset"),
    "access mode": (
        inference(),
        {"inference": {"preset": {"accessMode": "private"}}},
        "inference.preset.accessMode",
    ),
    "image added": (
        inference(),
        {"inference": {"preset": {"presetOptions": {"image": "r/x:1"}}}},
        "inference.preset",
    ),
    "image changed": (
        inference(preset={"name": "x", "presetOptions": {"image": "r/x:1"}}),
        {"inference": {"preset": {"presetOptions": {"image": "r/x:2"}}}},
        "presetOptions.image",
    ),
    "pull secrets changed": (
        inference(preset={"name": "x", "presetOptions": {"imagePullSecrets": ["a"]}}),
        {"inference": {"preset": {"presetOptions": {"imagePullSecrets": ["b"]}}}},
        "presetOptions.imagePullSecrets",
    ),
    "preset for template": (
        inference(),
        {"inference": {"preset": None, "template": TEMPLATE}},
        "inference",
    ),
    "tuning for inference": (inference(), {"inference": None, "tuning": TUNING}, "inference"),
    "method": (tuning(), {"tuning": {"method": "lora"}}, "tuning.method"),
    "tuning preset": (tuning(), {"tuning": {"preset": {"name": "x"}}}, "tuning.preset"),
    "tuning preset taken away": (tuning(), {"tuning": {"preset": None}}, "tuning"),
    "input name": (tuning(), {"tuning": {"input": {"name": "x"}}}, "tuning.input"),
}


@pytest.mark.parametrize("case", REFUSED_EDITS)
async def test_what_is_frozen_cannot_be_edited(kube: KubeClient, case: str) -> None:
    """U1 to U12 of the facts, in the CRD instead of a webhook."""
    sections, edit, field = REFUSED_EDITS[case]
    await kube.create(WORKSPACES, workspace("frozen", **sections))
    try:
        with pytest.raises(InvalidRequest) as refused:
            await kube.merge_patch(WORKSPACES, "default", "frozen", edit)
    finally:
        await kube.delete(WORKSPACES, "default", "frozen")
    assert field in str(refused.value)


ALLOWED_EDITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "preferred nodes": (inference(), {"resource": {"preferredNodes": ["n"]}}),
    "adapters": (
        inference(),
        {"inference": {"adapters": [{"source": {"name": "a", "image": "r/a:1"}}]}},
    ),
    "empty preset options": (inference(), {"inference": {"preset": {"presetOptions": {}}}}),
    "template content": (
        {"resource": RESOURCE, "inference": {"template": TEMPLATE}},
        {"inference": {"template": {"spec": {"hostname": "x"}}}},
    ),
    "method in capitals": (tuning(), {"tuning": {"method": "QLORA"}}),
    "tuning config, input and output": (
        tuning(),
        {
            "tuning": {
                "config": "c",
                "input": {"urls": ["https://example.com/other"]},
                "output": {"image": "r/t:2"},
            }
        },
    ),
    "labels": (inference(), {"metadata": {"labels": {"a": "b"}}}),
}


@pytest.mark.parametrize("case", ALLOWED_EDITS)
async def test_what_is_free_can_be_edited(kube: KubeClient, case: str) -> None:
    """Facts §4.3: preferredNodes, adapters, template content, tuning config, input and output."""
    sections, edit = ALLOWED_EDITS[case]
    await kube.create(WORKSPACES, workspace("free", **sections))
    try:
        await kube.merge_patch(WORKSPACES, "default", "free", edit)
    finally:
        await kube.delete(WORKSPACES, "default", "free")


async def test_objects_from_before_the_rules_stay_editable(
    real_kube: KubeClient, tmp_path: Path
) -> None:
    """Facts §14: upgrades broke old objects. A finalizer must come off whatever is stored."""
    kube = real_kube
    crd = copy.deepcopy(workspace_crd())
    crd["spec"] |= {"group": "old.kaito.test", "names": {"kind": "Old", "plural": "olds"}}
    crd["metadata"]["name"] = "olds.old.kaito.test"
    loose = copy.deepcopy(crd)
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    olds = Kind("old.kaito.test", "v1alpha1", "Old", "olds", True, decode_owned)
    bad = {
        "apiVersion": olds.api_version,
        "kind": "Old",
        "metadata": {"name": "old", "namespace": "default", "finalizers": ["kaito.sh/test"]},
        "resource": {"count": 0},
        "inference": {},
        "tuning": {"method": "full"},
    }
    await install(kube, tmp_path, loose)
    await kube.create(olds, bad)
    await install(kube, tmp_path, crd)
    await refused(kube, olds, bad | {"metadata": {"name": "new", "namespace": "default"}})

    await kube.merge_patch(olds, "default", "old", {"metadata": {"finalizers": None}})
    await kube.delete(olds, "default", "old")
    await kube.delete(CRDS, "", "olds.old.kaito.test")


async def refused(kube: KubeClient, kind: Kind[Owned], manifest: Mapping[str, Any]) -> None:
    """Return once the server refuses it: a new schema takes a moment to reach the handler."""
    name = manifest["metadata"]["name"]
    async with asyncio.timeout(10):
        while True:
            try:
                await kube.create(kind, manifest)
            except InvalidRequest:
                return
            await kube.delete(kind, "default", name)


async def test_a_machine_takes_every_field_gpu_provisioner_had(kube: KubeClient) -> None:
    """P1.2: quantities as numbers and as text; nothing is defaulted, nothing is lost."""
    spec = {
        "requirements": [
            {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["S"]}
        ],
        "resources": {"requests": {"storage": "50Gi", "cpu": 4}},
        "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
        "startupTaints": [{"key": "a", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}],
        "machineTemplateRef": {"name": "t", "kind": "K", "apiVersion": "v1"},
        "kubelet": {
            "clusterDNS": ["10.0.0.10"],
            "containerRuntime": "containerd",
            "maxPods": 110,
            "podsPerCore": 0,
            "systemReserved": {"cpu": "100m"},
            "kubeReserved": {"memory": "1Gi"},
            "evictionHard": {"memory.available": "5%"},
            "evictionSoft": {"memory.available": "10%"},
            "evictionSoftGracePeriod": {"memory.available": "1m"},
            "evictionMaxPodGracePeriod": 60,
            "imageGCHighThresholdPercent": 85,
            "imageGCLowThresholdPercent": 80,
            "cpuCFSQuota": True,
        },
    }
    machine = {
        "apiVersion": MACHINES.api_version,
        "kind": "Machine",
        "metadata": {"name": "ws000000001"},
        "spec": spec,
    }
    made = await kube.create(MACHINES, machine)
    await kube.delete(MACHINES, "", "ws000000001")
    assert made.body["spec"] == spec


MACHINE_REFUSED = {
    "requirement without key": ({"requirements": [{"operator": "In"}]}, "requirements[0].key"),
    "taint without effect": ({"taints": [{"key": "a"}]}, "taints[0].effect"),
    "not a quantity": ({"resources": {"requests": {"storage": "big"}}}, "requests.storage"),
    "threshold of 101": ({"kubelet": {"imageGCHighThresholdPercent": 101}}, "imageGCHigh"),
    "negative pods": ({"kubelet": {"maxPods": -1}}, "maxPods"),
}


@pytest.mark.parametrize("case", MACHINE_REFUSED)
async def test_a_machine_that_breaks_the_schema_is_refused(kube: KubeClient, case: str) -> None:
    """P1.2: required keys and limits."""
    spec, field = MACHINE_REFUSED[case]
    machine = {"apiVersion": MACHINES.api_version, "kind": "Machine", "spec": spec}
    with pytest.raises(InvalidRequest) as refused:
        await kube.create(MACHINES, machine | {"metadata": {"name": "refused"}})
    assert field in str(refused.value)
