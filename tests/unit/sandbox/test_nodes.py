"""The node agent: leases and heartbeats, pods from binding to deletion, nodes that fall silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from kaito.api.meta import Owned
from kaito.errors import ServerUnavailable
from kaito.kube.client import KubeClient
from kaito.sandbox.nodes import NodeAgent
from kaito.sandbox.pods import Report
from kaito.sandbox.script import Script, parse_script
from tests.fakes.clock import FakeClock
from tests.unit.sandbox.fake_cluster import FakeCluster

POOL = {"kubernetes.azure.com/agentpool": "ws1"}
Body = dict[str, Any]


class World:
    """A cluster, its agent and the clock of both."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.clock = FakeClock()
        self.script: Script = parse_script({"latency": {"pod": 5}})
        self.agent = NodeAgent(
            kube=cast(KubeClient, self.cluster), clock=self.clock, script=lambda: self.script
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.agent.run())
            await self.clock.advance(0)
            yield self
            task.cancel()

    def node(self, name: str = "n1", labels: Body = POOL, **status: Any) -> Body:
        conditions = status.get("conditions", [{"type": "Ready", "status": "True", "reason": "K"}])
        addresses = [{"type": "InternalIP", "address": "10.1.1.1"}]
        body = {
            "metadata": {"name": name, "labels": labels},
            "status": {"conditions": conditions, "addresses": addresses},
        }
        return self.cluster.put("nodes", body)

    def pod(self, name: str = "p1", node: str = "n1", **more: Any) -> Body:
        body = {
            "metadata": {"name": name, "namespace": "default", **more.get("metadata", {})},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "img"}]},
            "status": more.get("status", {"phase": "Pending"}),
        }
        return self.cluster.put("pods", body)

    def phase(self, name: str = "p1") -> str | None:
        found = self.cluster.read("pods", "default", name)
        return None if found is None else found["status"]["phase"]

    def lease(self, name: str = "n1") -> Body | None:
        return self.cluster.read("leases", "kube-node-lease", name)

    async def ask_to_delete(self, name: str = "p1") -> None:
        body = self.cluster.read("pods", "default", name)
        assert body is not None
        body["metadata"]["deletionTimestamp"] = "T"
        self.cluster.put("pods", body)
        await self.clock.advance(0)


@pytest.fixture
def world() -> World:
    return World()


def ready(node: Body | None) -> Body:
    assert node is not None
    return next(c for c in node["status"]["conditions"] if c["type"] == "Ready")


async def test_a_node_has_a_lease_from_the_start_and_every_ten_seconds(world: World) -> None:
    """P7.10: 40 s, held by the node's name, owned by the Node."""
    async with world.running():
        node = world.node()
        await world.clock.advance(0)
        first = world.lease()
        assert first is not None
        assert first["spec"]["holderIdentity"] == "n1"
        assert first["spec"]["leaseDurationSeconds"] == 40
        assert first["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
        await world.clock.advance(10)
        second = world.lease()
        assert second is not None
        assert second["spec"]["renewTime"] > first["spec"]["renewTime"]


async def test_nodes_of_others_are_not_touched(world: World) -> None:
    async with world.running():
        world.node("real", labels={"kubernetes.io/hostname": "real"})
        world.pod(node="real")
        await world.clock.advance(60)
        assert world.lease("real") is None
        assert world.phase() == "Pending"
        assert world.cluster.patches == []


async def test_spare_nodes_of_the_script_are_tended(world: World) -> None:
    async with world.running():
        world.node("spare", labels={"kaito.sh/sandbox-node": "true"})
        await world.clock.advance(0)
        assert world.lease("spare") is not None
        assert world.agent.nodes == ("spare",)


async def test_an_unchanged_status_is_written_each_five_minutes(world: World) -> None:
    async with world.running():
        world.node()
        await world.clock.advance(299)
        assert world.cluster.patches == []
        await world.clock.advance(11)
        assert len(world.cluster.patches) == 1
        assert ready(world.cluster.read("nodes", "", "n1"))["lastHeartbeatTime"]


async def test_a_node_that_falls_silent_stops_its_lease_and_its_pods(world: World) -> None:
    async with world.running():
        world.node()
        await world.clock.advance(0)
        world.agent.set_power("n1", False)
        before = world.lease()
        world.pod()
        await world.clock.advance(60)
        assert world.lease() == before
        assert world.phase() == "Pending"


async def test_a_node_that_recovers_says_what_it_said_before(world: World) -> None:
    """The node lifecycle controller had marked it Unknown; a kubelet overwrites that."""
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(5)
        world.agent.set_power("n1", False)
        await world.clock.advance(50)
        silenced = {"status": "Unknown", "reason": "NodeStatusUnknown"}
        world.node(conditions=[{"type": t, **silenced} for t in ("Ready", "DiskPressure")])
        pod = world.cluster.read("pods", "default", "p1")
        assert pod is not None
        pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        world.cluster.put("pods", pod)
        world.agent.set_power("n1", True)
        await world.clock.advance(10)
        node = world.cluster.read("nodes", "", "n1")
        assert (ready(node)["status"], ready(node)["reason"]) == ("True", "K")
        assert node is not None
        assert node["status"]["conditions"][1]["status"] == "False", "healthy, as never heard of"
        assert ready(world.cluster.read("pods", "default", "p1"))["status"] == "True"


async def test_power_may_be_cut_before_the_node_is_seen(world: World) -> None:
    async with world.running():
        world.agent.set_power("n1", False)
        world.node()
        await world.clock.advance(10)
        assert world.lease() is None
        world.agent.set_power("n1", True)
        await world.clock.advance(0)
        assert world.lease() is not None
        world.agent.set_power("never-seen", True)


async def test_a_bound_pod_runs_with_addresses_of_its_own(world: World) -> None:
    async with world.running():
        world.node()
        world.pod("p1")
        world.pod("p2")
        await world.clock.advance(5)
        pods = [world.cluster.read("pods", "default", name) for name in ("p1", "p2")]
        assert [p and p["status"]["phase"] for p in pods] == ["Running", "Running"]
        assert len({p["status"]["podIP"] for p in pods if p}) == 2
        assert {p["status"]["hostIP"] for p in pods if p} == {"10.1.1.1"}


async def test_a_pod_seen_before_its_node_runs_when_that_comes(world: World) -> None:
    async with world.running():
        world.pod()
        await world.clock.advance(10)
        assert world.phase() == "Pending"
        world.node()
        await world.clock.advance(5)
        assert world.phase() == "Running"


async def test_a_deleted_pod_ends_and_goes(world: World) -> None:
    """As a kubelet: the end is reported first, then the object is let go with grace 0."""
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(5)
        await world.ask_to_delete()
        assert world.phase() is None
        last = world.cluster.patches[-1][2]["status"]
        assert last["phase"] == "Failed"
        assert last["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 143


async def test_a_pod_with_a_finalizer_is_let_go_once(world: World) -> None:
    """Job pods wait for the job controller."""
    async with world.running():
        world.node()
        world.pod(metadata={"finalizers": ["batch.kubernetes.io/job-tracking"]})
        await world.clock.advance(5)
        await world.ask_to_delete()
        writes = len(world.cluster.patches)
        await world.clock.advance(30)
        assert world.phase() == "Failed"
        assert len(world.cluster.patches) == writes


async def test_a_pod_that_ended_before_is_not_run_but_can_be_deleted(world: World) -> None:
    async with world.running():
        world.node()
        world.pod(status={"phase": "Succeeded"})
        await world.clock.advance(10)
        assert world.cluster.patches == []
        await world.ask_to_delete()
        assert world.phase() is None
        assert world.cluster.patches == []


async def test_a_pod_deleted_while_its_node_is_silent_goes_when_it_recovers(world: World) -> None:
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(5)
        world.agent.set_power("n1", False)
        await world.ask_to_delete()
        await world.clock.advance(30)
        assert world.phase() == "Running"
        world.agent.set_power("n1", True)
        await world.clock.advance(0)
        assert world.phase() is None


async def test_a_node_that_is_gone_has_no_lease_and_no_kubelet(world: World) -> None:
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(1)
        world.cluster.remove("nodes", "", "n1")
        before = world.lease()
        await world.clock.advance(60)
        assert world.lease() == before
        assert world.phase() == "Pending"
        assert world.agent.nodes == ()


async def test_a_new_node_of_the_same_name_is_another_node(world: World) -> None:
    async with world.running():
        world.node()
        await world.clock.advance(1)
        fresh = world.node()
        fresh["metadata"] = {**fresh["metadata"], "uid": "other"}
        world.cluster.put("nodes", fresh)
        await world.clock.advance(0)
        lease = world.lease()
        assert lease is not None
        assert lease["metadata"]["ownerReferences"][0]["uid"] == "other"


async def test_a_write_that_fails_is_tried_again(world: World) -> None:
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(1)
        world.cluster.errors.append(ServerUnavailable("503"))
        await world.clock.advance(6)
        assert world.phase() == "Running"


async def test_a_pod_that_vanished_is_not_written_to(world: World) -> None:
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(1)
        world.cluster.remove("pods", "default", "p1")
        writes = len(world.cluster.patches)
        await world.clock.advance(30)
        assert len(world.cluster.patches) == writes


async def test_what_went_while_the_watch_was_broken_is_noticed(world: World) -> None:
    async with world.running():
        for name in ("n1", "n2"):
            world.node(name)
            world.pod(f"on-{name}", node=name)
        await world.clock.advance(5)
        expired = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
        world.cluster.end_watches("nodes", expired)
        world.cluster.end_watches("pods", {"type": "ERROR", "object": {"code": 500}})
        world.cluster.remove("nodes", "", "n2")
        world.cluster.remove("pods", "default", "on-n1")
        await world.clock.advance(2)
        assert world.agent.nodes == ("n1",)


async def test_a_watch_that_ends_goes_on_after_its_bookmark(world: World) -> None:
    world.cluster.page_size = 1
    world.node("n0")
    world.node("n1")
    async with world.running():
        assert world.agent.nodes == ("n0", "n1")
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "77"}}}
        world.cluster.say("nodes", bookmark)
        world.cluster.end_watches("nodes")
        await world.clock.advance(0)
        world.node("n2")
        await world.clock.advance(0)
        assert world.agent.nodes == ("n0", "n1", "n2")


async def test_another_runner_may_run_the_pods(world: World) -> None:
    """The seam for containers as real processes."""

    class Recorder:
        def __init__(self) -> None:
            self.started: list[str] = []
            self.ended: list[str] = []

        async def run(self, pod: Owned, report: Report) -> None:
            self.started.append(pod.metadata.name)
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.append(pod.metadata.name)

    runner = Recorder()
    world.agent = NodeAgent(
        kube=cast(KubeClient, world.cluster),
        clock=world.clock,
        script=lambda: world.script,
        runner=runner,
    )
    async with world.running():
        world.node()
        world.pod()
        await world.clock.advance(0)
        assert runner.started == ["p1"]
        await world.ask_to_delete()
        assert runner.ended == ["p1"]
