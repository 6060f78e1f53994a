"""Which events wake which Workspace, and the caches behind the reconciler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito import constants
from kaito.api.machine import Machine
from kaito.api.meta import ApiObject, Key, Owned, Undecodable
from kaito.api.views import Node, NodeClaim, gpu_allocatable, is_ready
from kaito.api.workspace import Workspace
from kaito.catalog.presets import Preset
from kaito.clock import Clock
from kaito.controller.controller import Controller
from kaito.informers.handlers import Change, own_key, owner_keys
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient
from kaito.reconcilers import kinds
from kaito.reconcilers.act import Actor
from kaito.reconcilers.workspace.naming import workspace_key
from kaito.reconcilers.workspace.reconciler import (
    BY_NODE,
    BY_WORKSPACE,
    BY_WORKSPACE_UID,
    Listers,
    WorkspaceReconciler,
)
from kaito.reconcilers.workspace.state import Options


@dataclass(frozen=True, slots=True)
class Sources:
    """The informers of the Workspace side."""

    workspaces: Informer[Workspace | Undecodable]
    machines: Informer[Machine | Undecodable]
    nodeclaims: Informer[NodeClaim]
    nodes: Informer[Node]
    deployments: Informer[Owned]
    services: Informer[Owned]

    @property
    def listers(self) -> Listers:
        """Their read halves."""
        return Listers(
            workspaces=self.workspaces.lister,
            machines=self.machines.lister,
            nodeclaims=self.nodeclaims.lister,
            nodes=self.nodes.lister,
            deployments=self.deployments.lister,
            services=self.services.lister,
        )


def sources(informers: InformerSet, *, namespace: str = "") -> Sources:
    """Get or create the informers. ``namespace``: watch Workspaces of one only; empty for all.

    Children are watched unfiltered: a label selector would hide those that the original left
    without labels, and one whose label someone took off (rule G13).
    """
    claims: Mapping[str, Callable[[Any], Iterable[str]]] = {
        BY_WORKSPACE_UID: workspace_uids,
        BY_WORKSPACE: workspace_names,
        BY_NODE: node_names,
    }
    namespaces = (namespace,) if namespace else ()
    return Sources(
        workspaces=informers.informer(
            kinds.WORKSPACES, namespaces=namespaces, indexes={BY_WORKSPACE_UID: own_uid}
        ),
        machines=informers.informer(kinds.MACHINES, optional=True, indexes=claims),
        nodeclaims=informers.informer(kinds.NODECLAIMS, optional=True, indexes=claims),
        nodes=informers.informer(kinds.NODES, indexes={BY_WORKSPACE_UID: workspace_uids}),
        deployments=informers.informer(kinds.DEPLOYMENTS, namespaces=namespaces),
        services=informers.informer(kinds.SERVICES, namespaces=namespaces),
    )


def build(
    *,
    client: KubeClient,
    actor: Actor,
    clock: Clock,
    sources: Sources,
    presets: Mapping[str, Preset],
    options: Options,
) -> WorkspaceReconciler:
    """The reconciler on these informers."""
    return WorkspaceReconciler(
        client=client,
        actor=actor,
        clock=clock,
        listers=sources.listers,
        presets=presets,
        options=options,
    )


def register(controller: Controller, sources: Sources, *, namespace: str = "") -> None:
    """Let the events of every object that a pass reads wake its Workspace."""

    def watched(keys: Iterable[Key]) -> list[Key]:
        return [key for key in keys if namespace in ("", key[0])]

    def of_node(change: Change[Node]) -> list[Key]:
        return watched(node_keys(change, sources))

    def of_claim(change: Change[Any]) -> list[Key]:
        return watched(claim_keys(change, sources))

    children: tuple[Informer[Any], ...] = (sources.deployments, sources.services)
    controller.watch(sources.workspaces, own_key)
    controller.watch(sources.machines, of_claim)
    controller.watch(sources.nodeclaims, of_claim)
    controller.watch(sources.nodes, of_node, predicate=node_changed)
    for child in children:
        controller.watch(child, owner_keys(constants.GROUP, "Workspace"))


def claim_keys(change: Change[Any], sources: Sources) -> list[Key]:
    """The Workspaces that the labels name, before and after, by name and by uid.

    By name also one that is long gone; by uid also after someone took the name labels off.
    """
    found = _keys(name for obj in _sides(change) for name in workspace_names(obj))
    for obj in _sides(change):
        for uid in workspace_uids(obj):
            found += [
                w.metadata.key for w in sources.workspaces.lister.by_index(BY_WORKSPACE_UID, uid)
            ]
    return list(dict.fromkeys(found))


def node_keys(change: Change[Node], sources: Sources) -> list[Key]:
    """The Workspaces that have the Node: by its labels, by their uid on it, by way of its claim."""
    name = change.obj.metadata.name
    found = claim_keys(change, sources)
    for claims in (sources.machines.lister, sources.nodeclaims.lister):
        found += _keys(n for c in claims.by_index(BY_NODE, name) for n in workspace_names(c))
    return list(dict.fromkeys(found))


def node_changed(change: Change[Node]) -> bool:
    """Anything that a pass reads of a Node; its heartbeats change nothing and wake nobody."""
    if change.old is None or change.new is None:
        return True
    return _read(change.old) != _read(change.new)


def own_uid(obj: ApiObject) -> tuple[str, ...]:
    """Index: the object's own uid."""
    return (obj.metadata.uid,)


def workspace_uids(obj: ApiObject) -> tuple[str, ...]:
    """Index: uid of the Workspace that the label names."""
    uid = obj.metadata.labels.get(constants.LABEL_WORKSPACE_UID)
    return (uid,) if uid else ()


def workspace_names(obj: ApiObject) -> tuple[str, ...]:
    """Index: ``namespace/name`` of the Workspace that two labels name."""
    name = workspace_key(obj.metadata)
    return (name,) if name else ()


def node_names(obj: Machine | NodeClaim | Undecodable) -> tuple[str, ...]:
    """Index: the Node of a claim."""
    if isinstance(obj, Undecodable) or not obj.node_name:
        return ()
    return (obj.node_name,)


def _keys(names: Iterable[str]) -> list[Key]:
    found: dict[Key, None] = {}
    for name in names:
        namespace, _, rest = name.partition("/")
        found[namespace, rest] = None
    return list(found)


def _sides(change: Change[Any]) -> list[ApiObject]:
    return [obj for obj in (change.old, change.new) if obj is not None]


def _read(node: Node) -> tuple[object, ...]:
    meta = node.metadata
    return (meta.uid, meta.labels, meta.is_deleting, is_ready(node), gpu_allocatable(node))
