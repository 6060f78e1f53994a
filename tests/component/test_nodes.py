"""The node agent beside the real scheduler, controllers and API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.mirror import follow
from kaito.sandbox.nodes import LEASES, NODES, PODS, NodeAgent
from kaito.sandbox.script import Latency, Script

pytestmark = pytest.mark.controlplane

NODE = "agent-node"
DEPLOYMENTS = Kind("apps", "v1", "Deployment", "deployments", True, decode_owned)
JOBS = Kind("batch", "v1", "Job", "jobs", True, decode_owned)
CLOCK = SystemClock()


@dataclass
class World:
    """A client, the agent, and a Node that it tends."""

    kube: KubeClient
    agent: NodeAgent


@pytest.fixture
async def world(real_kube: KubeClient) -> AsyncIterator[World]:
    script = Script(latency=Latency(pod=0.1))
    agent = NodeAgent(kube=real_kube, clock=CLOCK, script=lambda: script)
    capacity = {"cpu": "8", "memory": "32Gi", "pods": "30"}
    labels = {"kubernetes.azure.com/agentpool": "agent", "kubernetes.io/hostname": NODE}
    await real_kube.create(
        NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels}}
    )
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    addresses = [{"type": "InternalIP", "address": "10.9.9.9"}]
    status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
    body = {"status": {**status, "addresses": addresses}}
    await real_kube.merge_patch(NODES, "", NODE, body, subresource="status")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(agent.run())
        yield World(real_kube, agent)
        task.cancel()
    await real_kube.delete(NODES, "", NODE)


async def until(
    kube: KubeClient, kind: Kind[Owned], name: str, holds: Callable[[Any | None], bool]
) -> None:
    """Watch objects of this kind until one of this name makes it true (None: it is gone)."""
    found = asyncio.Event()

    def look(body: Any | None) -> None:
        if holds(body):
            found.set()

    def replace(objects: Any) -> None:
        look(next((o.body for o in objects if o.metadata.name == name), None))

    def changed(obj: Owned) -> None:
        if obj.metadata.name == name:
            look(obj.body)

    def deleted(obj: Owned) -> None:
        if obj.metadata.name == name:
            look(None)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        task = group.create_task(
            follow(kube, kind, clock=CLOCK, replace=replace, changed=changed, deleted=deleted)
        )
        await found.wait()
        task.cancel()


def template(restart_policy: str = "Always") -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "nodes-test"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": NODE},
            "restartPolicy": restart_policy,
            "containers": [{"name": "main", "image": "example.com/model"}],
        },
    }


async def test_a_deployment_becomes_available_and_its_pods_go_with_it(world: World) -> None:
    """The scheduler binds, the agent runs, the controller counts; and the garbage collector."""
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "model", "namespace": "default"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "nodes-test"}},
            "template": template(),
        },
    }
    await world.kube.create(DEPLOYMENTS, manifest)
    await until(
        world.kube,
        DEPLOYMENTS,
        "model",
        lambda d: d is not None and d.get("status", {}).get("availableReplicas") == 2,
    )
    pods = await world.kube.list(PODS, namespace="default", label_selector="app=nodes-test")
    status: Any = pods[0].body["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"
    assert status["hostIP"] == "10.9.9.9"

    await world.kube.delete(DEPLOYMENTS, "default", "model")
    for pod in pods:
        await until(world.kube, PODS, pod.metadata.name, lambda p: p is None)


async def test_a_job_completes(world: World) -> None:
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "tuning", "namespace": "default"},
        "spec": {"template": template("Never"), "backoffLimit": 0},
    }
    await world.kube.create(JOBS, manifest)
    await until(
        world.kube,
        JOBS,
        "tuning",
        lambda j: j is not None and j.get("status", {}).get("succeeded") == 1,
    )
    pods = await world.kube.list(PODS, namespace="default", label_selector="job-name=tuning")
    await world.kube.delete(JOBS, "default", "tuning")
    for pod in pods:
        await until(world.kube, PODS, pod.metadata.name, lambda p: p is None)


async def test_a_node_is_held_by_a_lease_of_its_own(world: World) -> None:
    """P7.10; ``until`` sees only what the API server accepted."""
    await until(
        world.kube,
        LEASES,
        NODE,
        lambda lease: lease is not None and lease["spec"]["holderIdentity"] == NODE,
    )
    node = await world.kube.get(NODES, "", NODE)
    lease = await world.kube.get(LEASES, "kube-node-lease", NODE)
    assert node is not None
    assert lease is not None
    assert lease.metadata.owner_references[0].uid == node.metadata.uid


async def test_a_node_marked_unknown_is_ready_again_when_it_reports(world: World) -> None:
    await until(world.kube, LEASES, NODE, lambda lease: lease is not None)
    world.agent.set_power(NODE, False)
    unknown = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
    # What the node lifecycle controller writes after 50 s of silence.
    await world.kube.merge_patch(
        NODES, "", NODE, {"status": {"conditions": [unknown]}}, subresource="status"
    )
    await until(world.kube, NODES, NODE, lambda n: _ready(n) == "Unknown")
    world.agent.set_power(NODE, True)
    await until(world.kube, NODES, NODE, lambda n: _ready(n) == "True")


def _ready(node: Any | None) -> str | None:
    conditions = () if node is None else node["status"].get("conditions", ())
    return next((c["status"] for c in conditions if c["type"] == "Ready"), None)
