"""Objects as a cluster would show them, with only what a test speaks of spelled out."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from kaito import constants
from kaito.api.meta import ConditionView, ObjectMeta, Owned
from kaito.api.validation import Fault
from kaito.api.views import Node, NodeStatus, decode_owned
from kaito.api.workspace import (
    InferenceSpec,
    LabelSelector,
    NodeSlot,
    PresetSpec,
    ResourceSpec,
    Workspace,
    WorkspaceStatus,
)
from kaito.catalog.presets import load_presets
from kaito.clock import rfc3339
from kaito.reconcilers import kinds
from kaito.reconcilers.workspace.manifests import deployment as deployments
from kaito.reconcilers.workspace.manifests import service as services
from kaito.reconcilers.workspace.naming import claim_name
from kaito.reconcilers.workspace.state import Options, OwnClaim, State

UID = "0b7d5e1c-9d1f-4b9e-8f0e-000000000001"
PRESET = "phi-3-mini-128k-instruct"
NOW = 1_800_000_000.0
OPTIONS = Options(registry="mcr.microsoft.com/aks/kaito")
PRESETS = MappingProxyType(load_presets(Path(__file__).parents[4] / "presets"))
FAULT = Fault("inference.preset.name", "There is no preset x.", "Use another.", "UnknownPreset")


def workspace(
    *,
    name: str = "phi",
    count: int = 1,
    instance_type: str = "Standard_NC6s_v3",
    preset: str = PRESET,
    labels: dict[str, str] | None = None,
    finalizers: tuple[str, ...] = (constants.WORKSPACE_FINALIZER,),
    deleting: bool = False,
    annotations: dict[str, str] | None = None,
    **status: Any,
) -> Workspace:
    return Workspace(
        metadata=ObjectMeta(
            name=name,
            namespace="default",
            uid=UID,
            resource_version="10",
            generation=1,
            creation_timestamp=rfc3339(NOW - 60),
            deletion_timestamp=rfc3339(NOW) if deleting else None,
            annotations=annotations or {},
            finalizers=finalizers,
        ),
        resource=ResourceSpec(
            count=count,
            instance_type=instance_type,
            label_selector=LabelSelector(match_labels=labels or {"apps": "phi-3"}),
        ),
        inference=InferenceSpec(preset=PresetSpec(name=preset)),
        status=WorkspaceStatus(**status),
    )


def asked(slot: int = 0, *, asks: int = 1, ago: float = 0.0, **fields: Any) -> NodeSlot:
    """A slot of the status that was asked for ``ago`` seconds before now."""
    return NodeSlot(
        slot=slot,
        claim=fields.pop("claim", claim_name(UID, slot)),
        asks=asks,
        last_asked=rfc3339(NOW - ago),
        **fields,
    )


def condition(type_: str, status: str, reason: str = "", message: str = "", ago: float = 0.0):
    return ConditionView(
        type=type_,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=rfc3339(NOW - ago),
    )


def launched(node: bool = True) -> tuple[ConditionView, ...]:
    done = "True" if node else "False"
    return (
        condition("MachineLaunched", "True"),
        condition("MachineRegistered", done, "" if node else "NodeNotFound"),
        condition("MachineInitialized", done, "" if node else "NodeNotFound"),
    )


def claim(
    slot: int = 0,
    *,
    name: str = "",
    node: str = "",
    uid_label: str | None = UID,
    deleting: bool = False,
    conditions: tuple[ConditionView, ...] = (),
    age: float = 0.0,
    uid: str = "",
) -> OwnClaim:
    name = name or claim_name(UID, slot)
    labels = {constants.LABEL_WORKSPACE: "phi", constants.LABEL_WORKSPACE_NAMESPACE: "default"}
    if uid_label is not None:
        labels[constants.LABEL_WORKSPACE_UID] = uid_label
    meta = ObjectMeta(
        name=name,
        uid=uid or f"uid-{name}",
        resource_version="5",
        creation_timestamp=rfc3339(NOW - age),
        deletion_timestamp=rfc3339(NOW) if deleting else None,
        labels=labels,
    )
    stub = type("Stub", (), {"metadata": meta})()
    return OwnClaim(kinds.MACHINES.ref(stub), meta, node, conditions)


def node(
    name: str = "aks-0",
    *,
    ready: bool = True,
    gpus: int = 1,
    labels: dict[str, str] | None = None,
    ready_ago: float = 0.0,
    deleting: bool = False,
) -> Node:
    own = {
        constants.LABEL_WORKSPACE_UID: UID,
        constants.LABEL_ACCELERATOR: "nvidia",
        constants.LABEL_MACHINE_TYPE: "gpu",
    }
    return Node(
        metadata=ObjectMeta(
            name=name,
            uid=f"uid-{name}",
            resource_version="7",
            labels=own if labels is None else labels,
            deletion_timestamp=rfc3339(NOW) if deleting else None,
        ),
        status=NodeStatus(
            allocatable={"nvidia.com/gpu": str(gpus)} if gpus else {},
            conditions=(condition("Ready", "True" if ready else "False", ago=ready_ago),),
        ),
    )


def state(ws: Workspace | None = None, **fields: Any) -> State:
    ws = ws or workspace()
    nodes = fields.pop("nodes", ())
    spec = ws.inference.preset if ws.inference else None
    return State(
        workspace=ws,
        options=OPTIONS,
        preset=PRESETS.get(spec.name) if spec else None,
        now=fields.pop("now", NOW),
        nodes={n.metadata.name: n for n in nodes},
        **fields,
    )


def ready_state(ws: Workspace | None = None, **fields: Any) -> State:
    """One claim whose Node is well."""
    return state(
        ws,
        **{"claims": (claim(node="aks-0", conditions=launched()),), "nodes": (node(),), **fields},
    )


def deployment(
    ws: Workspace | None = None,
    *,
    serving: bool = True,
    generation: int = 1,
    status: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
) -> Owned:
    """Our Deployment as the API server would show it."""
    base = state(ws)
    manifest = deployments.deployment(base, base.preset, base.served)
    count = base.resource.count if serving else 0
    shown = {
        "observedGeneration": generation,
        "replicas": base.resource.count,
        "updatedReplicas": base.resource.count,
        "availableReplicas": count,
    }
    return _stored(
        {
            **manifest,
            "spec": {**manifest["spec"], **(spec or {})},
            "status": shown | (status or {}),
        },
        generation,
    )


def service(ws: Workspace | None = None, *, address: str = "") -> Owned:
    ingress = {"loadBalancer": {"ingress": [{"ip": address}]}} if address else {}
    return _stored({**services.service(state(ws)), "status": ingress}, 0)


def _stored(manifest: dict[str, Any], generation: int) -> Owned:
    meta = {**manifest["metadata"], "uid": f"uid-{manifest['kind']}", "resourceVersion": "8"}
    return decode_owned(orjson.dumps({**manifest, "metadata": {**meta, "generation": generation}}))
