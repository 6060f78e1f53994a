"""Claims, Nodes, instances and states with everything a test does not speak of filled in."""

from __future__ import annotations

from typing import Any

from kaito import constants
from kaito.api.machine import Machine, decode_machine
from kaito.api.meta import ConditionView, ObjectMeta, ObjectRef, OwnerReference
from kaito.api.views import Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus, Taint
from kaito.clock import rfc3339
from kaito.provisioner.interface import Fault, Instance, InstanceState
from kaito.reconcilers.machine import gate as gates
from kaito.reconcilers.machine.gate import Gate
from kaito.reconcilers.machine.state import MachineSettings, State

NAME = "ws0a1b2c3d4"
UID = "uid-1"
NOW = 1_800_000_000.0
REF = ObjectRef("karpenter.sh/v1alpha5", "Machine", "", NAME, UID)


def manifest(**metadata: Any) -> dict[str, Any]:
    """A Machine as the Workspace side writes it (workspace facts §7.1)."""
    return {
        "apiVersion": "karpenter.sh/v1alpha5",
        "kind": "Machine",
        "metadata": {
            "name": NAME,
            "labels": {
                "karpenter.sh/provisioner-name": "default",
                "kaito.sh/workspace": "phi",
                "kaito.sh/workspacenamespace": "default",
                "kaito.sh/workspace-uid": "workspace-uid",
                "apps": "phi-3",
            },
            **metadata,
        },
        "spec": {
            "requirements": [
                {
                    "key": "node.kubernetes.io/instance-type",
                    "operator": "In",
                    "values": ["Standard_NC6s_v3"],
                }
            ],
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
            "resources": {"requests": {"storage": "50Gi"}},
        },
    }


def claim(
    *,
    conditions: tuple[ConditionView, ...] = (),
    node_name: str = "",
    gate: Gate | None = None,
    spec: dict[str, Any] | None = None,
    **metadata: Any,
) -> Machine:
    body = manifest()
    body["metadata"] |= {
        "uid": UID,
        "resourceVersion": "7",
        "generation": 1,
        "creationTimestamp": rfc3339(NOW - 60),
        "finalizers": [constants.TERMINATION_FINALIZER],
        **metadata,
    }
    if gate is not None:
        body["metadata"]["annotations"] = {constants.ANNOTATION_LAUNCH_GATE: gates.write(gate)}
    body["spec"] |= spec or {}
    body["status"] = {"nodeName": node_name}
    import orjson

    made = decode_machine(orjson.dumps(body))
    assert isinstance(made, Machine), made
    return made.model_copy(
        update={"status": made.status.model_copy(update={"conditions": conditions})}
    )


def said(type: str, status: str = "True", reason: str = "", message: str = "", at: float = NOW):
    return ConditionView(type, status, reason, message, rfc3339(at))


def launched_and_registered() -> tuple[ConditionView, ...]:
    return (said("MachineLaunched"), said("MachineRegistered"))


def node(
    name: str = "aks-node-0",
    *,
    ready: bool = True,
    marked: bool = False,
    deleting: bool = False,
    provider_id: str = "azure:///0",
    labels: dict[str, str] | None = None,
    taints: tuple[Taint, ...] = (),
    allocatable: dict[str, str] | None = None,
    unschedulable: bool = False,
) -> Node:
    marks = {constants.LABEL_REGISTERED: "true"} if marked else {}
    return Node(
        metadata=ObjectMeta(
            name=name,
            uid=f"uid-{name}",
            resource_version="3",
            deletion_timestamp=rfc3339(NOW) if deleting else None,
            labels={
                constants.LABEL_AGENTPOOL: NAME,
                constants.LABEL_INSTANCE_TYPE: "Standard_NC6s_v3",
                **marks,
                **(labels or {}),
            },
            finalizers=(constants.TERMINATION_FINALIZER,) if marked else (),
            owner_references=(OwnerReference("karpenter.sh/v1alpha5", "Machine", NAME, UID),)
            if marked
            else (),
        ),
        spec=NodeSpec(provider_id=provider_id, taints=taints, unschedulable=unschedulable),
        status=NodeStatus(
            capacity={"cpu": "6"},
            allocatable=allocatable or {"cpu": "6"},
            conditions=(ConditionView("Ready", "True" if ready else "False"),),
        ),
    )


def pod(name: str, **given: Any) -> Pod:
    owner = given.pop("owner", None)
    return Pod(
        metadata=ObjectMeta(
            name=name,
            namespace="default",
            uid=f"uid-{name}",
            owner_references=(OwnerReference("apps/v1", owner, "o", "u", True),) if owner else (),
            annotations=given.pop("annotations", {}),
            deletion_timestamp=given.pop("deleted", None),
        ),
        spec=PodSpec(
            node_name="aks-node-0",
            tolerations=given.pop("tolerations", ()),
            priority_class_name=given.pop("priority", ""),
        ),
        status=PodStatus(phase=given.pop("phase", "Running")),
    )


def instance(
    state: InstanceState = InstanceState.CREATING,
    *,
    uid: str | None = UID,
    ours: bool = True,
    fault: Fault | None = None,
    launched_at: float | None = NOW - 30,
) -> Instance:
    return Instance(
        name=NAME,
        state=state,
        raw_state=state.value,
        instance_type="Standard_NC6s_v3",
        is_ours=ours,
        claim_uid=uid,
        launched_at=launched_at,
        fault=fault,
    )


def gate(**given: Any) -> Gate:
    values: dict[str, Any] = {
        "attempt": 1,
        "in_a_row": 1,
        "reason": "QuotaExceeded",
        "code": "QuotaExceeded",
        "message": "too many cores",
        "remedy": "Raise the quota",
        "at": NOW - 10,
        "next": NOW + 590,
        "generation": 1,
    }
    return Gate(**(values | given))


def state(made: Machine | None = None, **given: Any) -> State:
    made = made or claim()
    values: dict[str, Any] = {
        "claim": made,
        "ref": REF,
        "settings": MachineSettings(),
        "now": NOW,
        "listed_at": NOW - 1,
        "gate": gates.read(made.metadata),
    }
    return State(**(values | given))
