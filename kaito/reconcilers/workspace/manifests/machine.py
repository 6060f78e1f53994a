"""The Machine that asks for one node (facts §7.1). Pure."""

from __future__ import annotations

from typing import Any

from kaito import constants
from kaito.reconcilers.workspace.naming import node_labels
from kaito.reconcilers.workspace.state import State


def machine(state: State, name: str) -> dict[str, Any]:
    """A Machine of this Workspace under ``name``. Labels travel by way of the pool to the Node."""
    meta, instance_type = state.workspace.metadata, state.resource.instance_type
    return {
        "apiVersion": constants.MACHINE_API_VERSION,
        "kind": "Machine",
        "metadata": {
            "name": name,
            "labels": {
                **node_labels(state.workspace),
                constants.LABEL_PROVISIONER_NAME: "default",
                constants.LABEL_WORKSPACE: meta.name,
                constants.LABEL_WORKSPACE_NAMESPACE: meta.namespace,
                constants.LABEL_WORKSPACE_UID: meta.uid,
            },
        },
        "spec": {
            "machineTemplateRef": {"name": name},
            "requirements": [
                _one_of(constants.LABEL_INSTANCE_TYPE, instance_type),
                _one_of(constants.LABEL_PROVISIONER_NAME, "default"),
                _one_of(constants.LABEL_MACHINE_TYPE, "gpu"),
                _one_of("kubernetes.io/arch", "amd64"),
                _one_of("kubernetes.io/os", "linux"),
            ],
            "taints": [
                {
                    "key": constants.TAINT_GPU_KEY,
                    "value": constants.TAINT_GPU_VALUE,
                    "effect": "NoSchedule",
                }
            ],
            "resources": {"requests": {"storage": _disk(state)}},
        },
    }


def _one_of(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": [value]}


def _disk(state: State) -> str:
    """OS disk for the image and the weights; 0 leaves it to the cloud's default."""
    return f"{state.preset.inference.disk_gib}Gi" if state.preset else "0"
