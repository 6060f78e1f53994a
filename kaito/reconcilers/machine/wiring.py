"""Which events wake which claim, and the caches behind the reconciler."""

from __future__ import annotations

from dataclasses import dataclass

from kaito import constants
from kaito.api.machine import Machine
from kaito.api.meta import Key, Undecodable
from kaito.api.views import Node, is_ready
from kaito.clock import Clock
from kaito.controller.controller import Controller
from kaito.informers.handlers import Change, own_key
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.client import KubeClient
from kaito.provisioner.inventory import Inventory
from kaito.reconcilers import kinds
from kaito.reconcilers.act import Actor
from kaito.reconcilers.machine.reconciler import BY_AGENTPOOL, MachineReconciler
from kaito.reconcilers.machine.state import MachineSettings


@dataclass(frozen=True, slots=True)
class Sources:
    """The informers of the node side."""

    machines: Informer[Machine | Undecodable]
    nodes: Informer[Node]


def sources(informers: InformerSet) -> Sources:
    """Get or create the informers."""
    return Sources(
        machines=informers.informer(kinds.MACHINES),
        nodes=informers.informer(kinds.NODES, indexes={BY_AGENTPOOL: agentpool_of}),
    )


def build(
    *,
    client: KubeClient,
    actor: Actor,
    clock: Clock,
    sources: Sources,
    inventory: Inventory,
    settings: MachineSettings | None = None,
) -> MachineReconciler:
    """The reconciler on these informers and this inventory. The actor needs the backend."""
    return MachineReconciler(
        client=client,
        actor=actor,
        clock=clock,
        inventory=inventory,
        machines=sources.machines.lister,
        nodes=sources.nodes.lister,
        settings=settings,
    )


def register(controller: Controller, sources: Sources, inventory: Inventory) -> None:
    """What wakes a claim: itself, its Nodes, and what the cloud's list shows of it."""
    controller.watch(sources.machines, own_key)
    controller.watch(sources.nodes, node_keys, predicate=node_changed)
    inventory.add_listener(lambda name: controller.enqueue(("", name)))


def agentpool_of(node: Node) -> tuple[str, ...]:
    """The pool a Node belongs to, which is its claim's name."""
    name = node.metadata.labels.get(constants.LABEL_AGENTPOOL)
    return (name,) if name else ()


def node_keys(change: Change[Node]) -> list[Key]:
    """The claims that the Node is of, before and after."""
    sides = (node for node in (change.old, change.new) if node is not None)
    return list(dict.fromkeys(("", name) for node in sides for name in agentpool_of(node)))


def node_changed(change: Change[Node]) -> bool:
    """Anything that a pass reads of a Node; its heartbeats wake nobody."""
    if change.old is None or change.new is None:
        return True
    return _read(change.old) != _read(change.new)


def _read(node: Node) -> tuple[object, ...]:
    meta, status = node.metadata, node.status
    return (
        *(meta.uid, meta.labels, meta.finalizers, meta.owner_references, meta.is_deleting),
        *(node.spec, status.capacity, status.allocatable, is_ready(node)),
    )
