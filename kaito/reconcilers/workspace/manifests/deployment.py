"""The Deployment that serves a preset's model, one replica a node (facts §8.1). Pure.

Equal input gives equal bytes: selectors are sorted, flags stand in the preset file's order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from kaito import constants
from kaito.api.workspace import PresetSpec
from kaito.catalog.presets import Preset
from kaito.reconcilers.ownership import owner_reference, with_hash
from kaito.reconcilers.workspace.naming import node_labels
from kaito.reconcilers.workspace.sizing import gpus_per_pod
from kaito.reconcilers.workspace.state import State

PROBE_SECONDS: Final = 10
PULL_SECONDS: Final = 600
"""Time for the image, on top of the preset's for loading, before the rollout counts as stuck."""


def deployment(state: State, preset: Preset, spec: PresetSpec) -> dict[str, Any]:
    """What serves ``preset``, as the Workspace's ``inference.preset`` (``spec``) asks for it."""
    meta = state.workspace.metadata
    loading = preset.inference.readiness_timeout_seconds
    return with_hash(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": meta.name,
                "namespace": meta.namespace,
                "labels": {constants.LABEL_WORKSPACE: meta.name},
                "ownerReferences": [
                    owner_reference(constants.WORKSPACE_API_VERSION, "Workspace", meta)
                ],
            },
            "spec": {
                "replicas": state.resource.count,
                "selector": {"matchLabels": {constants.LABEL_WORKSPACE: meta.name}},
                # A replica fills its node: a new one has no place before an old one has gone.
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
                },
                "progressDeadlineSeconds": loading + PULL_SECONDS,
                "template": {
                    "metadata": {"labels": {constants.LABEL_WORKSPACE: meta.name}},
                    "spec": _pod(state, preset, spec),
                },
            },
        }
    )


def command(preset: Preset) -> list[str]:
    """The model server's command: base, launch flags, rendezvous flags, script, run flags."""
    inference = preset.inference
    words = [
        inference.base_command,
        *_flags(inference.launch_params),
        *_flags(inference.rdzv_params),
        inference.script,
        *_flags(inference.run_params),
    ]
    return ["/bin/sh", "-c", " ".join(words)]


def image(state: State, preset: Preset, spec: PresetSpec) -> str:
    """The public image by registry, name and tag; a private one as the user gave it."""
    if spec.access_mode == "private":
        return spec.preset_options.image
    return f"{state.options.registry}/{preset.image.name}:{preset.image.tag}"


def _pod(state: State, preset: Preset, spec: PresetSpec) -> dict[str, Any]:
    gpus = gpus_per_pod(preset, state.resource.instance_type, state.options.provider)
    count = {constants.RESOURCE_GPU: str(gpus)}
    probe = {
        "httpGet": {"path": constants.PROBE_PATH, "port": constants.PORT_INFERENCE},
        "periodSeconds": PROBE_SECONDS,
    }
    loading = preset.inference.readiness_timeout_seconds
    container: dict[str, Any] = {
        "name": state.workspace.metadata.name,
        "image": image(state, preset, spec),
        "command": command(preset),
        "ports": [{"containerPort": constants.PORT_INFERENCE, "protocol": "TCP"}],
        "resources": {"requests": count, "limits": count},
        # Loading has its own probe, so that liveness need not wait for the slowest model.
        "startupProbe": {**probe, "failureThreshold": math.ceil(loading / PROBE_SECONDS)},
        "livenessProbe": probe,
        "readinessProbe": probe,
    }
    pod: dict[str, Any] = {
        "affinity": {"nodeAffinity": _node_affinity(state)},
        "tolerations": [
            {"key": constants.RESOURCE_GPU, "operator": "Exists", "effect": "NoSchedule"},
            {
                "key": constants.TAINT_GPU_KEY,
                "operator": "Equal",
                "value": constants.TAINT_GPU_VALUE,
                "effect": "NoSchedule",
            },
        ],
        "containers": [container],
    }
    secrets = spec.preset_options.image_pull_secrets
    if spec.access_mode == "private" and secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in secrets]
    if gpus > 1:  # processes of one model exchange tensors through shared memory
        container["volumeMounts"] = [{"name": "dshm", "mountPath": "/dev/shm"}]  # noqa: S108
        pod["volumes"] = [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]
    return pod


def _node_affinity(state: State) -> dict[str, Any]:
    """The user's selector and our mark: only this Workspace's nodes, whatever labels others use."""
    wanted = {**node_labels(state.workspace), constants.LABEL_WORKSPACE_UID: state.uid}
    terms = [{"key": k, "operator": "In", "values": [wanted[k]]} for k in sorted(wanted)]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": terms}]
        }
    }


def _flags(params: Mapping[str, str] | None) -> list[str]:
    return [f"--{key}={value}" if value else f"--{key}" for key, value in (params or {}).items()]
