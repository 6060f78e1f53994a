"""A cluster in memory for the shell's tests: FakeKube, the node side, a Deployment controller.

Caches are read through ``listers``; ``freeze`` holds them at a moment while the server moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from kaito import constants
from kaito.api.meta import ObjectRef
from kaito.clock import rfc3339
from kaito.kube.client import Written
from kaito.kube.resources import Kind
from kaito.reconcilers import kinds
from kaito.reconcilers.act import Actor
from kaito.reconcilers.workspace import wiring
from kaito.reconcilers.workspace.reconciler import (
    BY_NODE,
    BY_WORKSPACE,
    BY_WORKSPACE_UID,
    Listers,
    WorkspaceReconciler,
)
from tests.fakes import mutation
from tests.fakes.clock import FakeClock
from tests.fakes.kube import FakeKube
from tests.unit.reconcilers.workspace.builders import OPTIONS, PRESETS, UID

Body = dict[str, Any]
KINDS = (kinds.WORKSPACES, kinds.MACHINES, kinds.NODES, kinds.DEPLOYMENTS, kinds.SERVICES)


class Crash(BaseException):
    """The process is gone: kill -9, after the write and before its answer."""


class Cluster(FakeKube):
    """``made``: all that was ever created. ``crash_after``: the write that the process dies of."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock, on_written=self._count)
        self.clock = clock
        self.made: list[str] = []
        self.crash_after: int | None = None
        self._written = 0
        self._frozen: dict[str, list[Body]] | None = None

    async def create(self, kind: Kind[Any], manifest: Mapping[str, Any]) -> Any:
        where = (kind, manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])
        before = self.body(*where)
        try:
            return await super().create(kind, manifest)
        finally:
            if before is None and self.body(*where) is not None:
                self.made.append(f"{kind.kind} {where[2]}")

    def _count(self, written: Written) -> None:
        self._written += 1
        if self.crash_after is not None and self._written >= self.crash_after:
            raise Crash

    def survive(self) -> None:
        """No more crashes; the count of writes starts anew."""
        self.crash_after, self._written = None, 0

    # What a test arranges and looks at -----------------------------------------------------------

    def names(self, kind: Kind[Any]) -> list[str]:
        return [body["metadata"]["name"] for body in self.bodies(kind)]

    def written(self) -> list[tuple[str, str]]:
        return [(call.method, call.kind.partition(".")[0]) for call in self.writes()]

    def edit(self, kind: Kind[Any], name: str, change: Callable[[Body], None]) -> None:
        """Someone else writes to an object."""
        found = next(b for b in self.bodies(kind) if b["metadata"]["name"] == name)
        change(found)
        self.seed(kind, found)

    def remove(self, kind: Kind[Any], name: str) -> None:
        """The object is gone, whatever finalizers it had."""
        self.edit(
            kind,
            name,
            lambda b: b["metadata"].update(
                deletionTimestamp=rfc3339(self.clock.now()), finalizers=[]
            ),
        )

    def workspace(self) -> Body:
        found = self.body(kinds.WORKSPACES, "default", "phi")
        assert found is not None
        return found

    def add_workspace(self, *, uid: str = UID, count: int = 1, preset: str = "") -> None:
        self.seed(
            kinds.WORKSPACES,
            {
                "apiVersion": constants.WORKSPACE_API_VERSION,
                "kind": "Workspace",
                "metadata": {"name": "phi", "namespace": "default", "uid": uid},
                "resource": {
                    "count": count,
                    "instanceType": "Standard_NC6s_v3",
                    "labelSelector": {"matchLabels": {"apps": "phi-3"}},
                },
                "inference": {"preset": {"name": preset or "phi-3-mini-128k-instruct"}},
            },
        )

    def delete_workspace(self) -> None:
        self.edit(
            kinds.WORKSPACES,
            "phi",
            lambda b: b["metadata"].update(deletionTimestamp=rfc3339(self.clock.now())),
        )

    @property
    def is_empty(self) -> bool:
        return not any(self.bodies(kind) for kind in KINDS)

    # What others do ------------------------------------------------------------------------------

    def turn(self) -> None:
        """One turn of the node side and of the Deployment controller."""
        for machine in self.bodies(kinds.MACHINES):
            self._turn_machine(machine)
        for found in self.bodies(kinds.DEPLOYMENTS):
            replicas = ("replicas", "updatedReplicas", "availableReplicas")
            found["status"] = {
                "observedGeneration": found["metadata"]["generation"],
                **dict.fromkeys(replicas, found["spec"]["replicas"]),
            }
            self.seed(kinds.DEPLOYMENTS, found)

    def _turn_machine(self, machine: Body) -> None:
        meta = machine["metadata"]
        node = f"aks-{meta['name']}"
        if "deletionTimestamp" in meta:
            if node in self.names(kinds.NODES):
                self.remove(kinds.NODES, node)
            meta["finalizers"] = []
        elif not meta.get("finalizers"):
            meta["finalizers"] = [constants.TERMINATION_FINALIZER]
        else:
            done = ("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready")
            at = meta["creationTimestamp"]
            machine["status"] = {
                "nodeName": node,
                "conditions": [
                    {"type": t, "status": "True", "lastTransitionTime": at} for t in done
                ],
            }
            if node not in self.names(kinds.NODES):
                labels = {**meta["labels"], "accelerator": "nvidia", "kaito.sh/machine-type": "gpu"}
                self.seed(kinds.NODES, _node(node, labels, at))
        self.seed(kinds.MACHINES, machine)

    # The caches ----------------------------------------------------------------------------------

    def freeze(self, *, without: Kind[Any] | None = None) -> None:
        """From now on the caches show this moment; of the kind ``without`` they have seen none."""
        self._frozen = {k.resource: self.bodies(k) for k in KINDS if k is not without}

    def thaw(self) -> None:
        self._frozen = None

    def seen(self, kind: Kind[Any]) -> list[Body]:
        return self.bodies(kind) if self._frozen is None else self._frozen.get(kind.resource, [])

    def listers(self) -> Listers:
        uids = {BY_WORKSPACE_UID: wiring.workspace_uids}
        claims = {**uids, BY_WORKSPACE: wiring.workspace_names, BY_NODE: wiring.node_names}
        return Listers(
            workspaces=_Lister(self, kinds.WORKSPACES, {BY_WORKSPACE_UID: wiring.own_uid}),
            machines=_Lister(self, kinds.MACHINES, claims),
            nodeclaims=_Lister(self, kinds.NODECLAIMS, claims),
            nodes=_Lister(self, kinds.NODES, uids),
            deployments=_Lister(self, kinds.DEPLOYMENTS),
            services=_Lister(self, kinds.SERVICES),
        )


class _Lister:
    def __init__(
        self,
        cluster: Cluster,
        kind: Kind[Any],
        indexes: Mapping[str, Callable[[Any], Iterable[str]]] | None = None,
    ) -> None:
        self._cluster, self._kind, self._indexes = cluster, kind, indexes or {}

    def get(self, namespace: str, name: str) -> Any:
        return next((obj for obj in self._all() if obj.metadata.key == (namespace, name)), None)

    def by_index(self, index: str, value: str) -> tuple[Any, ...]:
        return tuple(obj for obj in self._all() if value in self._indexes[index](obj))

    def _all(self) -> list[Any]:
        return [self._decoded(body) for body in self._cluster.seen(self._kind)]

    def _decoded(self, body: Body) -> Any:
        """As an item of a list: those of built-in kinds come without apiVersion and kind."""
        bare = {k: v for k, v in body.items() if k not in ("apiVersion", "kind")}
        return mutation.current().note(self._kind, self._kind.decode(orjson.dumps(bare)))


class Recorder:
    """Keeps the Events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def record(self, regarding: ObjectRef, type_: str, reason: str, action: str, note: str) -> None:
        self.events.append((type_, reason))


def reconciler(cluster: Cluster, recorder: Recorder | None = None) -> WorkspaceReconciler:
    """A fresh process on this cluster."""
    return WorkspaceReconciler(
        client=cluster,
        actor=Actor(client=cluster, recorder=recorder or Recorder()),
        clock=cluster.clock,
        listers=cluster.listers(),
        presets=PRESETS,
        options=OPTIONS,
    )


def _node(name: str, labels: dict[str, str], at: str) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {
            "allocatable": {"nvidia.com/gpu": "1"},
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at}],
        },
    }
