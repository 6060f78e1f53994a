"""The node agent: what kubelets do, for every Node of the sandbox, in one process.

Leases and heartbeats keep the Nodes alive; pods bound to them run (``pods.py``) and their status is
written; a pod that is deleted goes. A node without power (``set_power``) stops all of that, and the
real node lifecycle controller does what it does. Nodes themselves are made and removed by the
simulated cloud.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import structlog

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import Clock, rfc3339, rfc3339_micro
from kaito.constants import LABEL_AGENTPOOL
from kaito.errors import Conflict, KaitoError, NotFound
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.mirror import follow
from kaito.sandbox.pods import (
    PodReport,
    PodRunner,
    PretendedPods,
    read_pod,
    terminated_by_signal,
    wire_status,
)
from kaito.sandbox.script import Script

LABEL_SANDBOX_NODE = "kaito.sh/sandbox-node"

NODES = Kind("", "v1", "Node", "nodes", False, decode_owned)
PODS = Kind("", "v1", "Pod", "pods", True, decode_owned)
LEASES = Kind("coordination.k8s.io", "v1", "Lease", "leases", True, decode_owned)

_LEASE_NAMESPACE = "kube-node-lease"
_FIELD_MANAGER = "kaito-sandbox-node"
_LEASE_SECONDS = 40  # facts P7.10
_RENEW_SECONDS = 10.0
_HEARTBEAT_SECONDS = 300.0
_RETRY_SECONDS = 1.0
_SILENCED = "NodeStatusUnknown"  # the node lifecycle controller's word for a node without a lease

log = structlog.get_logger()


class _Machine:
    """A Node of ours as it is now, and whether it reports."""

    def __init__(self, node: Owned) -> None:
        self.node = node
        self.reports = asyncio.Event()
        self.reports.set()
        self.wake = asyncio.Event()
        self.conditions: dict[str, Mapping[str, Any]] = {}
        self.task: asyncio.Task[None] | None = None
        self.see(node)

    def see(self, node: Owned) -> None:
        """Take the newest state; what was last said of it by itself is remembered."""
        self.node = node
        for condition in _conditions(node):
            if condition.get("reason") != _SILENCED:
                self.conditions[condition["type"]] = condition
            else:
                self.wake.set()


class _Tended:
    """A pod on a Node of ours."""

    def __init__(self, pod: Owned, address: str) -> None:
        self.pod = pod
        self.address = address
        self.report: PodReport | None = None
        self.is_ending = False
        self.task: asyncio.Task[None] | None = None


class NodeAgent:
    """One agent for all Nodes of the sandbox: those with its label or an agent pool's.

    ``script``: the script in force. ``runner``: who runs pods; the pretending one by default.
    """

    def __init__(
        self,
        *,
        kube: KubeClient,
        clock: Clock,
        script: Callable[[], Script],
        runner: PodRunner | None = None,
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._runner = runner or PretendedPods(clock=clock, script=script)
        self._machines: dict[str, _Machine] = {}
        self._bound: dict[str, Owned] = {}
        self._tended: dict[str, _Tended] = {}
        self._silent: set[str] = set()
        self._addresses = itertools.count(2)
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Tend nodes and pods until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(
                follow(
                    self._kube,
                    NODES,
                    clock=self._clock,
                    replace=self._replace_nodes,
                    changed=self._see_node,
                    deleted=lambda node: self._lose_node(node.metadata.name),
                )
            )
            group.create_task(
                follow(
                    self._kube,
                    PODS,
                    clock=self._clock,
                    query={"fieldSelector": "spec.nodeName!="},
                    replace=self._replace_pods,
                    changed=self._see_pod,
                    deleted=lambda pod: self._lose_pod(pod.metadata.uid),
                )
            )

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the Nodes it tends."""
        return tuple(self._machines)

    def set_power(self, name: str, is_on: bool) -> None:
        """Cut a node off, as when its machine hangs (also one yet to be seen), or bring it back."""
        machine = self._machines.get(name)
        if not is_on:
            self._silent.add(name)
            if machine is not None:
                machine.reports.clear()
            return
        self._silent.discard(name)
        if machine is None:
            return
        machine.reports.set()
        machine.wake.set()
        for tended in self._on(name):
            if tended.report is not None and not tended.is_ending:
                # Others may have written "not ready" meanwhile.
                self._start(self._report(tended, tended.report))

    # Nodes

    def _replace_nodes(self, nodes: Sequence[Owned]) -> None:
        for name in self._machines.keys() - {node.metadata.name for node in nodes}:
            self._lose_node(name)
        for node in nodes:
            self._see_node(node)

    def _see_node(self, node: Owned) -> None:
        name, labels = node.metadata.name, node.metadata.labels
        if LABEL_AGENTPOOL not in labels and LABEL_SANDBOX_NODE not in labels:
            return
        machine = self._machines.get(name)
        if machine is not None and machine.node.metadata.uid == node.metadata.uid:
            machine.see(node)
            return
        if machine is not None:
            self._lose_node(name)
        machine = self._machines[name] = _Machine(node)
        if name in self._silent:
            machine.reports.clear()
        machine.task = self._start(self._tend(machine))
        for pod in list(self._bound.values()):
            self._look(pod)

    def _lose_node(self, name: str) -> None:
        machine = self._machines.pop(name, None)
        self._silent.discard(name)
        if machine is not None and machine.task is not None:
            machine.task.cancel()
            for tended in self._on(name):
                self._drop(tended.pod.metadata.uid)

    async def _tend(self, machine: _Machine) -> None:
        name = machine.node.metadata.name
        beaten = self._clock.monotonic()
        while True:
            await machine.reports.wait()
            machine.wake.clear()
            try:
                await self._renew(machine.node)
                now = self._clock.monotonic()
                if _is_silenced(machine.node) or now - beaten >= _HEARTBEAT_SECONDS:
                    await self._beat(machine)
                    beaten = now
            except KaitoError as err:
                log.warning("node heartbeat failed", node=name, reason=err.reason, error=str(err))
            timer = self._clock.call_later(_RENEW_SECONDS, machine.wake.set)
            try:
                await machine.wake.wait()
            finally:
                timer.cancel()

    async def _renew(self, node: Owned) -> None:
        name = node.metadata.name
        await self._kube.apply(
            LEASES,
            {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {
                    "namespace": _LEASE_NAMESPACE,
                    "name": name,
                    "ownerReferences": [
                        {
                            "apiVersion": NODES.api_version,
                            "kind": NODES.kind,
                            "name": name,
                            "uid": node.metadata.uid,
                        }
                    ],
                },
                "spec": {
                    "holderIdentity": name,
                    "leaseDurationSeconds": _LEASE_SECONDS,
                    "renewTime": rfc3339_micro(self._clock.now()),
                },
            },
            field_manager=_FIELD_MANAGER,
        )

    async def _beat(self, machine: _Machine) -> None:
        """Write the status again: a heartbeat, or what the node was before it fell silent."""
        node, now = machine.node, rfc3339(self._clock.now())
        conditions = []
        for found in _conditions(node):
            condition = {**found, "lastHeartbeatTime": now}
            if found.get("reason") == _SILENCED:
                before = machine.conditions.get(found["type"], _healthy(found["type"]))
                condition |= {**before, "lastHeartbeatTime": now, "lastTransitionTime": now}
            conditions.append(condition)
        # With the resourceVersion: the list replaces the whole list, which the cloud also writes.
        meta = {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}
        body = {"metadata": meta, "status": {"conditions": conditions}}
        await self._kube.merge_patch(NODES, "", node.metadata.name, body, subresource="status")

    # Pods

    def _replace_pods(self, pods: Sequence[Owned]) -> None:
        for uid in self._bound.keys() - {pod.metadata.uid for pod in pods}:
            self._lose_pod(uid)
        for pod in pods:
            self._see_pod(pod)

    def _see_pod(self, pod: Owned) -> None:
        self._bound[pod.metadata.uid] = pod
        self._look(pod)

    def _lose_pod(self, uid: str) -> None:
        self._bound.pop(uid, None)
        self._drop(uid)

    def _drop(self, uid: str) -> None:
        tended = self._tended.pop(uid, None)
        if tended is not None and tended.task is not None:
            tended.task.cancel()

    def _look(self, pod: Owned) -> None:
        """Start what this pod needs now, if it is on a node of ours and that is not under way."""
        uid, shape = pod.metadata.uid, read_pod(pod)
        if shape.spec.node_name not in self._machines:
            return
        tended = self._tended.get(uid)
        if tended is None:
            tended = self._tended[uid] = _Tended(pod, self._address())
            if not shape.is_over and not pod.metadata.is_deleting:
                tended.task = self._start(self._run(tended))
        tended.pod = pod
        if pod.metadata.is_deleting and not tended.is_ending:
            tended.is_ending = True
            if tended.task is not None:
                tended.task.cancel()
            tended.task = self._start(self._end(tended))

    async def _run(self, tended: _Tended) -> None:
        async def report(told: PodReport) -> None:
            tended.report = told
            await self._report(tended, told)

        await self._runner.run(tended.pod, report)

    async def _end(self, tended: _Tended) -> None:
        """As a kubelet: stop the containers, say so, then let the object go."""
        meta = tended.pod.metadata
        shape = read_pod(tended.pod)
        if not shape.is_over:
            over = terminated_by_signal(shape, rfc3339(self._clock.now()))
            await self._report(tended, over)
        await self._persist(
            tended,
            lambda: self._kube.delete(
                PODS, meta.namespace, meta.name, uid=meta.uid, grace_period_seconds=0
            ),
        )

    async def _report(self, tended: _Tended, report: PodReport) -> None:
        def write() -> Awaitable[object]:
            pod = tended.pod
            meta = pod.metadata
            status = wire_status(
                report,
                read_pod(pod),
                pod_ip=tended.address,
                host_ip=self._host_address(pod),
                now=rfc3339(self._clock.now()),
            )
            body = {"metadata": {"uid": meta.uid}, "status": status}
            return self._kube.merge_patch(
                PODS, meta.namespace, meta.name, body, subresource="status"
            )

        await self._persist(tended, write)

    async def _persist(self, tended: _Tended, write: Callable[[], Awaitable[object]]) -> None:
        """Write for a pod when its node reports, until it is written or the pod is gone."""
        node = read_pod(tended.pod).spec.node_name
        while (machine := self._machines.get(node)) is not None:
            await machine.reports.wait()
            try:
                await write()
            except (NotFound, Conflict):
                return
            except KaitoError as err:
                pod = str(PODS.ref(tended.pod))
                log.warning("pod status failed", pod=pod, reason=err.reason, error=str(err))
                await self._clock.sleep(_RETRY_SECONDS)
            else:
                return

    def _on(self, node: str) -> list[_Tended]:
        return [t for t in self._tended.values() if read_pod(t.pod).spec.node_name == node]

    def _host_address(self, pod: Owned) -> str:
        machine = self._machines.get(read_pod(pod).spec.node_name)
        return _internal_ip(machine.node) if machine is not None else ""

    def _address(self) -> str:
        number = next(self._addresses)
        return f"10.244.{number >> 8 & 255}.{number & 255}"

    def _start(self, work: Any) -> asyncio.Task[None]:
        assert self._group is not None, "the agent is running"
        return self._group.create_task(work)


def _conditions(node: Owned) -> list[dict[str, Any]]:
    status: Any = node.body.get("status") or {}
    return list(status.get("conditions") or ())


def _is_silenced(node: Owned) -> bool:
    return any(condition.get("reason") == _SILENCED for condition in _conditions(node))


def _healthy(kind: str) -> Mapping[str, Any]:
    if kind == "Ready":
        return {"status": "True", "reason": "KubeletReady", "message": "kubelet is ready"}
    return {"status": "False", "reason": "KubeletHealthy", "message": "kubelet is healthy"}


def _internal_ip(node: Owned) -> str:
    status: Any = node.body.get("status") or {}
    addresses = status.get("addresses") or ()
    return next((a["address"] for a in addresses if a.get("type") == "InternalIP"), "")
