"""The Machine of ``karpenter.sh/v1alpha5``, as gpu-provisioner serves it (facts P1.1 to P1.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from kaito.api.meta import ConditionView, Undecodable
from kaito.api.schema import (
    READS_CONDITIONS,
    Metadata,
    Model,
    Quantity,
    decoder,
    envelope_of,
    shows_conditions,
)
from kaito.api.views import single_value
from kaito.constants import LABEL_INSTANCE_TYPE

_CONDITION: Final = {
    "type": {"type": "string", "description": "Which aspect of the Machine this is about."},
    "status": {"type": "string", "description": "True, False or Unknown."},
    "severity": {"type": "string", "description": "Absent for Ready and what it is made of."},
    "lastTransitionTime": {"type": "string", "description": "When the condition last changed."},
    "reason": {"type": "string", "description": "The cause in one CamelCase word."},
    "message": {"type": "string", "description": "The cause in a sentence."},
}


def _int32(minimum: int | None = None, maximum: int | None = None) -> dict[str, Any]:
    limits = {"format": "int32", "minimum": minimum, "maximum": maximum}
    return {key: value for key, value in limits.items() if value is not None}


class Requirement(Model):
    """One condition on the instance to choose, by label."""

    key: str = Field(description="Label that the condition is about.")
    operator: str = Field(description="In, NotIn, Exists, DoesNotExist, Gt or Lt.")
    values: tuple[str, ...] = Field((), description="Values that the operator compares with.")


class ResourceRequests(Model):
    """What the instance has to offer."""

    requests: Mapping[str, Quantity] = Field(
        {}, description="Least amounts by resource. storage is the size of the OS disk."
    )


class MachineTaint(Model):
    """A taint to put on the Node."""

    key: str = Field(description="Taint key.")
    effect: str = Field(description="NoSchedule, PreferNoSchedule or NoExecute.")
    value: str = Field("", description="Taint value.")
    time_added: str | None = Field(
        None,
        description="When a NoExecute taint was added.",
        json_schema_extra={"format": "date-time"},
    )


class MachineTemplateRef(Model):
    """Names the provider's own settings for this Machine."""

    name: str = Field(description="Name of the object referred to.")
    kind: str = Field("", description="Kind of the object referred to.")
    api_version: str = Field("", description="API version of the object referred to.")


class KubeletConfiguration(Model):
    """Settings of the kubelet. Accepted as gpu-provisioner accepted them; no backend reads them."""

    cluster_dns: tuple[str, ...] = Field(
        (), alias="clusterDNS", description="Addresses of the cluster's DNS servers."
    )
    container_runtime: str = Field("", description="Name of the container runtime.")
    max_pods: int | None = Field(
        None, description="Most pods on the Node.", json_schema_extra=_int32(0)
    )
    pods_per_core: int | None = Field(
        None, description="Most pods per CPU core.", json_schema_extra=_int32(0)
    )
    system_reserved: Mapping[str, Quantity] = Field(
        {}, description="Resources kept for the operating system."
    )
    kube_reserved: Mapping[str, Quantity] = Field(
        {}, description="Resources kept for Kubernetes' own daemons."
    )
    eviction_hard: Mapping[str, str] = Field(
        {}, description="Thresholds at which pods are evicted at once."
    )
    eviction_soft: Mapping[str, str] = Field(
        {}, description="Thresholds at which pods are evicted after a grace period."
    )
    eviction_soft_grace_period: Mapping[str, str] = Field(
        {}, description="Grace period of each soft threshold."
    )
    eviction_max_pod_grace_period: int | None = Field(
        None,
        description="Longest termination grace, in seconds, granted when a soft threshold evicts.",
        json_schema_extra=_int32(),
    )
    image_gc_high_threshold_percent: int | None = Field(
        None,
        alias="imageGCHighThresholdPercent",
        description="Disk usage at which image garbage collection starts.",
        json_schema_extra=_int32(0, 100),
    )
    image_gc_low_threshold_percent: int | None = Field(
        None,
        alias="imageGCLowThresholdPercent",
        description="Disk usage that image garbage collection frees down to.",
        json_schema_extra=_int32(0, 100),
    )
    cpu_cfs_quota: bool | None = Field(
        None, alias="cpuCFSQuota", description="Enforce CPU limits by CFS quota."
    )


class MachineSpec(Model):
    """The instance that is wanted."""

    requirements: tuple[Requirement, ...] = Field(
        (),
        description=(
            "Conditions on the instance. node.kubernetes.io/instance-type with one value is the"
            " VM size; other single values become labels."
        ),
    )
    resources: ResourceRequests = Field(
        ResourceRequests(), description="What the instance has to offer."
    )
    taints: tuple[MachineTaint, ...] = Field((), description="Taints the Node is to carry.")
    startup_taints: tuple[MachineTaint, ...] = Field(
        (),
        description=(
            "Taints that others put on the Node and take off again; until then the Machine is not"
            " initialized."
        ),
    )
    machine_template_ref: MachineTemplateRef | None = Field(
        None, description="Names the provider's own settings for this Machine."
    )
    kubelet: KubeletConfiguration | None = Field(
        None, description="Settings of the kubelet; accepted, not acted on."
    )


class MachineStatus(Model):
    """What became of it."""

    node_name: str = Field("", description="Name of the Node, once it has registered.")
    provider_id: str = Field(
        "", alias="providerID", description="The cloud's name of the machine, once it is launched."
    )
    capacity: Mapping[str, Quantity] = Field(
        {}, description="Capacity of the Node, copied when it registered."
    )
    allocatable: Mapping[str, Quantity] = Field(
        {}, description="What pods may use of it, copied when it registered."
    )
    conditions: Annotated[
        tuple[ConditionView, ...],
        READS_CONDITIONS,
        shows_conditions("One aspect of the Machine's state.", ("type", "status"), _CONDITION),
    ] = Field(
        (),
        description="MachineLaunched, MachineRegistered, MachineInitialized, and Ready, their sum.",
    )


# Docstrings here are descriptions in the CRD. This class satisfies ``claim.Claim``.
class Machine(Model):
    """A Machine asks for one node."""

    metadata: Metadata
    spec: MachineSpec = Field(MachineSpec(), description="The instance that is wanted.")
    status: MachineStatus = Field(MachineStatus(), description="What became of it.")

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
    def taints(self) -> tuple[MachineTaint, ...]:
        """Taints the Node is to carry."""
        return self.spec.taints

    @property
    def startup_taints(self) -> tuple[MachineTaint, ...]:
        """Taints that someone else takes off before the Machine counts as initialized."""
        return self.spec.startup_taints


decode_machine: Final[Callable[[bytes], Machine | Undecodable]] = decoder(
    Machine, envelope_of("spec", "status")
)
"""One Machine; Undecodable when a field of it cannot be read. Raises msgspec.DecodeError."""
