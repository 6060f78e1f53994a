"""The Service that clients reach the model by (facts §8.4). Pure."""

from __future__ import annotations

from typing import Any

from kaito import constants
from kaito.reconcilers.ownership import owner_reference, with_hash
from kaito.reconcilers.workspace.state import State


def service(state: State) -> dict[str, Any]:
    """Port 80 to the model's server, 29500 for torch's rendezvous.

    ``publishNotReadyAddresses`` is left at false, its default: a client meets ready pods only.
    """
    meta = state.workspace.metadata
    public = meta.annotations.get(constants.ANNOTATION_ENABLE_LB) == "True"
    return with_hash(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": meta.name,
                "namespace": meta.namespace,
                "labels": {constants.LABEL_WORKSPACE: meta.name},
                "ownerReferences": [
                    owner_reference(constants.WORKSPACE_API_VERSION, "Workspace", meta)
                ],
            },
            "spec": {
                "type": "LoadBalancer" if public else "ClusterIP",
                "selector": {constants.LABEL_WORKSPACE: meta.name},
                "ports": [
                    _port("http", constants.PORT_SERVICE, constants.PORT_INFERENCE),
                    _port("torch", constants.PORT_TORCH, constants.PORT_TORCH),
                ],
            },
        }
    )


def _port(name: str, port: int, target: int) -> dict[str, Any]:
    return {"name": name, "protocol": "TCP", "port": port, "targetPort": target}
