"""The kinds the operator reads and writes: the one table from wire names to ``Kind[T]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kaito.api.machine import Machine, decode_machine
from kaito.api.meta import ApiObject, Owned, Undecodable
from kaito.api.views import (
    Node,
    NodeClaim,
    Pod,
    decode_node,
    decode_nodeclaim,
    decode_owned,
    decode_pod,
)
from kaito.api.workspace import Workspace, decode_workspace
from kaito.kube.resources import Kind

WORKSPACES: Final[Kind[Workspace | Undecodable]] = Kind(
    "kaito.sh", "v1alpha1", "Workspace", "workspaces", True, decode_workspace
)
MACHINES: Final[Kind[Machine | Undecodable]] = Kind(
    "karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_machine
)
NODECLAIMS: Final[Kind[NodeClaim]] = Kind(
    "karpenter.sh", "v1", "NodeClaim", "nodeclaims", False, decode_nodeclaim
)
NODES: Final[Kind[Node]] = Kind("", "v1", "Node", "nodes", False, decode_node)
PODS: Final[Kind[Pod]] = Kind("", "v1", "Pod", "pods", True, decode_pod)
SERVICES: Final[Kind[Owned]] = Kind("", "v1", "Service", "services", True, decode_owned)
DEPLOYMENTS: Final[Kind[Owned]] = Kind(
    "apps", "v1", "Deployment", "deployments", True, decode_owned
)

_KINDS: Final[tuple[Kind[ApiObject], ...]] = (
    WORKSPACES,
    MACHINES,
    NODECLAIMS,
    NODES,
    PODS,
    SERVICES,
    DEPLOYMENTS,
)
_BY_NAME: Final[Mapping[tuple[str, str], Kind[ApiObject]]] = {
    (kind.api_version, kind.kind): kind for kind in _KINDS
}


def by_name(api_version: str, kind: str) -> Kind[ApiObject]:
    """The kind of a manifest or reference. KeyError: a kind the operator never writes."""
    return _BY_NAME[api_version, kind]
