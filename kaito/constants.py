"""Names that appear on the wire: groups, labels, annotations, finalizers, field managers."""

from typing import Final

GROUP: Final = "kaito.sh"
WORKSPACE_API_VERSION: Final = "kaito.sh/v1alpha1"
MACHINE_API_VERSION: Final = "karpenter.sh/v1alpha5"
NODECLAIM_API_VERSION: Final = "karpenter.sh/v1"
FIELD_MANAGER: Final = "kaito-workspace"

WORKSPACE_FINALIZER: Final = "workspace.finalizer.kaito.sh"
TERMINATION_FINALIZER: Final = "karpenter.sh/termination"

LABEL_WORKSPACE: Final = "kaito.sh/workspace"
LABEL_WORKSPACE_NAMESPACE: Final = "kaito.sh/workspacenamespace"
LABEL_WORKSPACE_UID: Final = "kaito.sh/workspace-uid"
LABEL_RAGENGINE: Final = "kaito.sh/ragengine"
LABEL_MACHINE_TYPE: Final = "kaito.sh/machine-type"
LABEL_CLAIM_UID: Final = "kaito.sh/claim-uid"
LABEL_CREATION_TIMESTAMP: Final = "kaito.sh/creation-timestamp"
LABEL_LAUNCHED_AT: Final = "kaito.sh/launched-at"
LABEL_PROVISIONER_NAME: Final = "karpenter.sh/provisioner-name"
LABEL_NODEPOOL: Final = "karpenter.sh/nodepool"
LABEL_REGISTERED: Final = "karpenter.sh/registered"
LABEL_INITIALIZED: Final = "karpenter.sh/initialized"
LABEL_INSTANCE_TYPE: Final = "node.kubernetes.io/instance-type"
LABEL_ZONE: Final = "topology.kubernetes.io/zone"
LABEL_AGENTPOOL: Final = "kubernetes.azure.com/agentpool"
LABEL_ACCELERATOR: Final = "accelerator"
LABEL_EXCLUDE_FROM_LB: Final = "node.kubernetes.io/exclude-from-external-load-balancers"

ANNOTATION_ENABLE_LB: Final = "kaito.sh/enablelb"
ANNOTATION_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
ANNOTATION_MANIFEST_HASH: Final = "kaito.sh/manifest-hash"
ANNOTATION_LAUNCH_GATE: Final = "kaito.sh/launch-gate"

RESERVED_LABEL_PREFIXES: Final = ("kaito.sh/", "karpenter.sh/")

RESOURCE_GPU: Final = "nvidia.com/gpu"
TAINT_GPU_KEY: Final = "sku"
TAINT_GPU_VALUE: Final = "gpu"

PORT_INFERENCE: Final = 5000
PORT_SERVICE: Final = 80
PORT_TORCH: Final = 29500
PROBE_PATH: Final = "/healthz"

DEFAULT_INSTANCE_TYPE: Final = "Standard_NC12s_v3"
DEFAULT_PRESET_REGISTRY: Final = "mcr.microsoft.com/aks/kaito"

SKU_UNAVAILABLE_MESSAGE: Final = "all requested instance types were unavailable during launch"
"""Compared whole by callers of the provisioner (facts P1.12): never reworded."""
