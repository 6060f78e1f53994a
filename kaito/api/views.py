"""Objects we only look at, reduced to the fields that some decision reads.

Bytes of one object come in, a frozen msgspec struct goes out; what is not named is never built.
Our own kinds are in ``workspace.py`` and ``machine.py``; kinds we write are ``meta.Owned``.

Quantities stay as the server wrote them (``"29Gi"``): ``catalog/quantities.py`` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from kaito.api.meta import ConditionView, ObjectMeta, Owned, View
from kaito.constants import ANNOTATION_LAST_APPLIED, LABEL_INSTANCE_TYPE, RESOURCE_GPU


class Taint(View, frozen=True):
    """A node taint."""

    key: str = ""
    effect: str = ""
    value: str = ""


class NodeSpec(View, frozen=True):
    """``spec`` of a Node. ``provider_id`` may be empty for the first seconds (facts P7.1)."""

    provider_id: str = msgspec.field(name="providerID", default="")
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False


class NodeStatus(View, frozen=True):
    """``status`` of a Node."""

    capacity: dict[str, str] = msgspec.field(default_factory=dict)
    allocatable: dict[str, str] = msgspec.field(default_factory=dict)
    conditions: tuple[ConditionView, ...] = ()


class Node(View, frozen=True):
    """A Node."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ResourceRequirements(View, frozen=True):
    """Requests and limits of a container. The server fills requests from limits where absent."""

    requests: dict[str, str] = msgspec.field(default_factory=dict)
    limits: dict[str, str] = msgspec.field(default_factory=dict)


class Container(View, frozen=True):
    """A container as it was asked for. ``restart_policy`` ``Always`` on an init one: a sidecar."""

    name: str = ""
    image: str = ""
    resources: ResourceRequirements = ResourceRequirements()
    restart_policy: str = ""


class Toleration(View, frozen=True):
    """A pod's toleration; an empty key with ``Exists`` tolerates everything."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""


class PodSpec(View, frozen=True):
    """``spec`` of a Pod; ``node_name`` is empty until it is bound."""

    node_name: str = ""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    priority_class_name: str = ""
    termination_grace_period_seconds: int = 30


class Waiting(View, frozen=True):
    """Why a container has not started: ``ImagePullBackOff``, ``CrashLoopBackOff`` and the like."""

    reason: str = ""
    message: str = ""


class Terminated(View, frozen=True):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: str | None = None


class ContainerState(View, frozen=True):
    """At most one is set; neither set means running (or not known yet)."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(View, frozen=True):
    """What became of one container."""

    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(View, frozen=True):
    """``status`` of a Pod; ``reason`` is set when the node or the eviction API ended it."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: tuple[ConditionView, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(View, frozen=True):
    """A Pod."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_terminal(self) -> bool:
        """Succeeded or Failed: it holds no resources any more."""
        return self.status.phase in ("Succeeded", "Failed")


class NodeClassRef(View, frozen=True):
    """``spec.nodeClassRef`` of a NodeClaim; tells whether it is managed here (facts P1.21)."""

    group: str = ""
    kind: str = ""
    name: str = ""


class Requirement(View, frozen=True):
    """One entry of a claim's ``spec.requirements``."""

    key: str = ""
    operator: str = ""
    values: tuple[str, ...] = ()


class ClaimResources(View, frozen=True):
    """``spec.resources`` of a NodeClaim."""

    requests: dict[str, str | int] = msgspec.field(default_factory=dict)


class NodeClaimSpec(View, frozen=True):
    """``spec`` of a NodeClaim (``karpenter.sh/v1``)."""

    node_class_ref: NodeClassRef = NodeClassRef()
    requirements: tuple[Requirement, ...] = ()
    resources: ClaimResources = ClaimResources()
    taints: tuple[Taint, ...] = ()
    startup_taints: tuple[Taint, ...] = ()
    termination_grace_period: str = ""


class NodeClaimStatus(View, frozen=True):
    """``status`` of a NodeClaim."""

    node_name: str = ""
    provider_id: str = msgspec.field(name="providerID", default="")
    image_id: str = msgspec.field(name="imageID", default="")
    conditions: tuple[ConditionView, ...] = ()


class NodeClaim(View, frozen=True):
    """A Karpenter NodeClaim. Satisfies ``claim.Claim``."""

    metadata: ObjectMeta
    spec: NodeClaimSpec = NodeClaimSpec()
    status: NodeClaimStatus = NodeClaimStatus()

    @property
    def instance_type(self) -> str:
        """The one instance type asked for; empty when none or several are."""
        return single_value(self.spec.requirements, LABEL_INSTANCE_TYPE)

    @property
    def node_name(self) -> str:
        """Name of its Node; empty until registered."""
        return self.status.node_name

    @property
    def provider_id(self) -> str:
        """The cloud's name of the machine; empty until launched."""
        return self.status.provider_id

    @property
    def conditions(self) -> tuple[ConditionView, ...]:
        """Conditions as they are on the object."""
        return self.status.conditions

    @property
    def requests(self) -> Mapping[str, str | int]:
        """Resources asked for; ``storage`` is the OS disk."""
        return self.spec.resources.requests

    @property
    def taints(self) -> tuple[Taint, ...]:
        """Taints the Node is to carry."""
        return self.spec.taints

    @property
    def startup_taints(self) -> tuple[Taint, ...]:
        """Taints that someone else takes off before the claim counts as initialized."""
        return self.spec.startup_taints


class MetadataOnly(View, frozen=True):
    """Any object, when only its metadata matters."""

    metadata: ObjectMeta


_node: Final = msgspec.json.Decoder(Node)
_pod: Final = msgspec.json.Decoder(Pod)
_nodeclaim: Final = msgspec.json.Decoder(NodeClaim)
_metadata: Final = msgspec.json.Decoder(MetadataOnly)
_any: Final = msgspec.json.Decoder(dict[str, Any])


def decode_node(raw: bytes) -> Node:
    """One v1 Node.

    Raises:
        msgspec.DecodeError: not a Node.
    """
    return _node.decode(raw)


def decode_pod(raw: bytes) -> Pod:
    """One v1 Pod.

    Raises:
        msgspec.DecodeError: not a Pod.
    """
    return _pod.decode(raw)


def decode_nodeclaim(raw: bytes) -> NodeClaim:
    """One NodeClaim, any served version.

    Raises:
        msgspec.DecodeError: not a NodeClaim.
    """
    return _nodeclaim.decode(raw)


def decode_owned(raw: bytes) -> Owned:
    """One object of any kind, whole but for managedFields and kubectl's copy of the manifest.

    Raises:
        msgspec.DecodeError: not an object with metadata.
    """
    body = _any.decode(raw)
    fields = body.get("metadata")
    metadata = msgspec.convert(fields, ObjectMeta)
    fields.pop("managedFields", None)  # type: ignore[union-attr]  # convert proved it a mapping
    if ANNOTATION_LAST_APPLIED in metadata.annotations:
        del fields["annotations"][ANNOTATION_LAST_APPLIED]  # type: ignore[index]
    return Owned(metadata, body)


def decode_metadata(raw: bytes) -> MetadataOnly:
    """``metadata`` of one object: a PartialObjectMetadata, or any object when only that matters.

    Raises:
        msgspec.DecodeError: not an object with metadata.
    """
    return _metadata.decode(raw)


def single_value(requirements: Iterable[Any], key: str) -> str:
    """The value of an ``In`` requirement with exactly one; empty otherwise.

    ``requirements``: any with ``key``, ``operator`` and ``values``.
    """
    for entry in requirements:
        if entry.key == key and entry.operator == "In" and len(entry.values) == 1:
            return str(entry.values[0])
    return ""


def is_ready(obj: Node | Pod) -> bool:
    """Its condition ``Ready`` is True. Unknown (a node that stopped reporting) is not ready."""
    return any(c.type == "Ready" and c.status == "True" for c in obj.status.conditions)


def gpu_allocatable(node: Node) -> int:
    """GPUs that pods may use; 0 until the device plugin has registered, or when it died."""
    return _count(node.status.allocatable)


def gpu_requested(pod: Pod) -> int:
    """GPUs the pod holds on its node: the scheduler's sum (KEP-753), 0 once it is terminal."""
    if pod.is_terminal:
        return 0
    sidecars = peak = 0
    for container in pod.spec.init_containers:
        wanted = _count(container.resources.requests)
        if container.restart_policy == "Always":
            sidecars += wanted
            peak = max(peak, sidecars)
        else:
            peak = max(peak, sidecars + wanted)
    running = sum(_count(c.resources.requests) for c in pod.spec.containers)
    return max(peak, sidecars + running)


def _count(resources: Mapping[str, str]) -> int:
    # The server keeps extended resources whole and canonical, so below 1,000 it is plain digits.
    text = resources.get(RESOURCE_GPU, "0")
    return int(text) if text.isdigit() else 0
