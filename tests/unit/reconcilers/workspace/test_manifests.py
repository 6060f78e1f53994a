"""What is written for a Workspace, against facts §7.1, §8.1 and §8.4."""

from __future__ import annotations

import orjson

from kaito import constants
from kaito.api.workspace import InferenceSpec, PresetOptions, PresetSpec
from kaito.reconcilers.workspace.manifests.deployment import deployment
from kaito.reconcilers.workspace.manifests.machine import machine
from kaito.reconcilers.workspace.manifests.service import service
from tests.unit.reconcilers.workspace.builders import PRESET, UID, state, workspace


def build(ws=None):
    s = state(ws)
    return deployment(s, s.preset, s.served)


def pod(ws=None):
    return build(ws)["spec"]["template"]["spec"]


def test_the_machine_is_the_originals_with_our_name_and_uid():
    assert machine(state(), "ws0123456789") == {
        "apiVersion": "karpenter.sh/v1alpha5",
        "kind": "Machine",
        "metadata": {
            "name": "ws0123456789",
            "labels": {
                "apps": "phi-3",
                "karpenter.sh/provisioner-name": "default",
                "kaito.sh/workspace": "phi",
                "kaito.sh/workspacenamespace": "default",
                "kaito.sh/workspace-uid": UID,
            },
        },
        "spec": {
            "machineTemplateRef": {"name": "ws0123456789"},
            "requirements": [
                {
                    "key": "node.kubernetes.io/instance-type",
                    "operator": "In",
                    "values": ["Standard_NC6s_v3"],
                },
                {"key": "karpenter.sh/provisioner-name", "operator": "In", "values": ["default"]},
                {"key": "kaito.sh/machine-type", "operator": "In", "values": ["gpu"]},
                {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
            ],
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
            "resources": {"requests": {"storage": "50Gi"}},
        },
    }


def test_the_users_labels_never_take_our_keys():
    """G7: under kaito.sh/ and karpenter.sh/ ours win."""
    ws = workspace(labels={"kaito.sh/workspace": "x", "karpenter.sh/nodepool": "y", "a": "b"})
    labels = machine(state(ws), "ws0")["metadata"]["labels"]
    assert (labels["kaito.sh/workspace"], labels["a"]) == ("phi", "b")
    assert "karpenter.sh/nodepool" not in labels


def test_the_deployment_serves_one_replica_a_node():
    made = build(workspace(count=2))
    assert made["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "kaito.sh/v1alpha1",
            "kind": "Workspace",
            "name": "phi",
            "uid": UID,
            "controller": True,
        }
    ]
    assert made["spec"]["replicas"] == 2
    assert made["spec"]["selector"] == {"matchLabels": {"kaito.sh/workspace": "phi"}}
    assert made["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_container_runs_the_presets_image_and_command():
    container = pod()["containers"][0]
    assert container["name"] == "phi"
    assert container["image"] == f"mcr.microsoft.com/aks/kaito/kaito-{PRESET}:0.0.2"
    assert container["command"] == [
        "/bin/sh",
        "-c",
        "accelerate launch --num_processes=1 --num_machines=1 --machine_rank=0 --gpu_ids=all"
        " inference_api.py --pipeline=text-generation --torch_dtype=auto --trust_remote_code",
    ]
    assert container["ports"] == [{"containerPort": 5000, "protocol": "TCP"}]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_loading_has_its_own_probe_and_the_rollout_waits_for_it():
    """Facts §14: 600 s of liveness delay killed slow loads, 600 s of progress gave up on them."""
    container = pod()["containers"][0]
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 1800
    assert startup["httpGet"] == {"path": "/healthz", "port": 5000}
    assert "initialDelaySeconds" not in container["livenessProbe"]
    assert build()["spec"]["progressDeadlineSeconds"] > 1800


def test_pods_land_only_on_nodes_of_this_workspace():
    """G2: by the user's selector and by our mark, keys sorted."""
    affinity = pod(workspace(labels={"z": "1", "a": "2", "kaito.sh/x": "3"}))["affinity"]
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    expressions = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert [(e["key"], e["values"]) for e in expressions] == [
        ("a", ["2"]),
        ("kaito.sh/workspace-uid", [UID]),
        ("z", ["1"]),
    ]


def test_shared_memory_comes_with_more_than_one_gpu():
    """Facts §14: not with more than one node."""
    assert "volumes" not in pod(workspace(count=3))
    two = pod(workspace(instance_type="Standard_NC12s_v3"))
    assert two["containers"][0]["resources"]["requests"] == {"nvidia.com/gpu": "2"}
    assert two["containers"][0]["volumeMounts"] == [{"name": "dshm", "mountPath": "/dev/shm"}]
    assert two["volumes"] == [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]


def test_a_size_that_is_not_in_the_table_gets_the_presets_gpus():
    unknown = pod(workspace(instance_type="Standard_NX1_v9"))
    assert unknown["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}


def test_a_private_image_is_the_users_and_comes_with_its_secrets():
    options = PresetOptions(image="acr.io/phi:1", image_pull_secrets=("acr",))
    spec = PresetSpec(name=PRESET, access_mode="private", preset_options=options)
    ws = workspace().model_copy(update={"inference": InferenceSpec(preset=spec)})
    assert pod(ws)["containers"][0]["image"] == "acr.io/phi:1"
    assert pod(ws)["imagePullSecrets"] == [{"name": "acr"}]


def test_the_service_has_both_ports_and_hides_unready_pods():
    spec = service(state())["spec"]
    assert spec == {
        "type": "ClusterIP",
        "selector": {"kaito.sh/workspace": "phi"},
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": 5000},
            {"name": "torch", "protocol": "TCP", "port": 29500, "targetPort": 29500},
        ],
    }


def test_equal_input_gives_equal_bytes_and_the_hash_moves_with_the_content():
    one, two = build(), build(workspace(labels={"apps": "other"}))
    assert orjson.dumps(one) == orjson.dumps(build())
    hashes = [m["metadata"]["annotations"][constants.ANNOTATION_MANIFEST_HASH] for m in (one, two)]
    assert hashes[0] != hashes[1]
