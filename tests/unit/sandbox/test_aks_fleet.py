"""VMs that become Nodes: when they join, become ready and leave (facts P7.1, P7.2, P7.11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito.errors import ServerUnavailable
from tests.fakes.arm import SITE, FakeArm, pool_body
from tests.fakes.nodes import FakeNodes

NODE = f"aks-ws1-{SITE.vmss_digits}-vmss000000"
UNINITIALIZED = "node.cloudprovider.kubernetes.io/uninitialized"
POOL_TAINT = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}


class Cloud:
    """Pools with a fleet behind them, on one clock."""

    def __init__(self) -> None:
        self.kube = FakeNodes()
        self.arm = FakeArm(kube=self.kube)
        assert self.arm.fleet is not None
        self.fleet = self.arm.fleet
        self.power: list[tuple[str, bool]] = []
        self.fleet.on_power = lambda name, is_on: self.power.append((name, is_on))

    async def pass_time(self, seconds: float) -> None:
        await self.arm.clock.advance(seconds)

    def node(self, name: str = NODE) -> dict[str, Any]:
        return self.kube.nodes[name]

    def ready(self, name: str = NODE) -> str:
        return self.condition("Ready", name)

    def condition(self, type_: str, name: str = NODE) -> str:
        (found,) = [c for c in self.node(name)["status"]["conditions"] if c["type"] == type_]
        return str(found["status"])

    def gpus(self, name: str = NODE) -> tuple[str | None, str | None]:
        status = self.node(name)["status"]
        return tuple(status[t].get("nvidia.com/gpu") for t in ("capacity", "allocatable"))


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    cloud = Cloud()
    task = asyncio.ensure_future(cloud.fleet.run())
    yield cloud
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_node_joins_is_initialized_then_ready(cloud):
    """P7.1: the order, with the default latencies."""
    await cloud.arm.put("ws1")
    await cloud.pass_time(2.9)
    assert cloud.kube.nodes == {}
    await cloud.pass_time(0.1)
    assert cloud.ready() == "False"
    assert "providerID" not in cloud.node()["spec"]
    assert [t["key"] for t in cloud.node()["spec"]["taints"]] == ["sku", UNINITIALIZED]
    await cloud.pass_time(1)
    assert cloud.node()["spec"]["taints"] == [POOL_TAINT]
    assert cloud.node()["spec"]["providerID"].endswith("/virtualMachines/0")
    assert cloud.node()["metadata"]["labels"]["topology.kubernetes.io/region"] == "eastus"
    assert (cloud.ready(), cloud.gpus()) == ("False", (None, None))
    await cloud.pass_time(1)
    assert (cloud.ready(), cloud.gpus()) == ("True", ("1", "1"))


@pytest.mark.parametrize(("create", "join", "state"), [(10, 3, "Creating"), (1, 3, "Succeeded")])
async def test_a_node_joins_before_the_pool_has_succeeded_or_after(cloud, create, join, state):
    """P7.1: both orders happen."""
    cloud.arm.script(latency={"create": create, "join": join})
    await cloud.arm.put("ws1")
    await cloud.pass_time(join)
    assert list(cloud.kube.nodes) == [NODE]
    assert await cloud.arm.state("ws1") == state


async def test_a_node_takes_four_writes_to_become_ready(cloud):
    await cloud.arm.put("ws1")
    await cloud.pass_time(60)
    assert cloud.kube.writes == ["create", "patch", "patch status", "patch status"]


async def test_the_nodes_of_a_pool_go_before_the_pool_does(cloud):
    """P7.2: between DELETE accepted and pool gone."""
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    await cloud.arm.delete("ws1")
    assert list(cloud.kube.nodes) == [NODE]
    await cloud.pass_time(1)
    assert cloud.kube.nodes == {}
    assert await cloud.arm.state("ws1") == "Deleting"


async def test_a_pool_deleted_before_its_node_joined_gets_none(cloud):
    await cloud.arm.put("ws1")
    await cloud.arm.delete("ws1")
    await cloud.pass_time(60)
    assert cloud.kube.writes == []


@pytest.mark.parametrize(("joined", "nodes"), [(False, []), (True, [NODE])])
async def test_an_abort_keeps_the_node_that_has_joined_and_stops_the_other(cloud, joined, nodes):
    """P5.11: no roll-back, the VM may exist."""
    await cloud.arm.put("ws1")
    await cloud.pass_time(3.5 if joined else 1)
    await cloud.arm.abort("ws1")
    await cloud.pass_time(60)
    assert list(cloud.kube.nodes) == nodes


@pytest.mark.parametrize("state", ["Stuck", "Failed"])
async def test_no_node_joins_a_pool_that_is_never_made(cloud, state):
    cloud.arm.script(pools=[{"state": state}])
    await cloud.arm.put("ws1")
    await cloud.pass_time(60)
    assert cloud.kube.nodes == {}


async def test_a_name_may_be_used_again_at_once(cloud):
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    await cloud.arm.delete("ws1")
    await cloud.pass_time(2)
    await cloud.arm.put("ws1")
    await cloud.pass_time(5)
    assert cloud.ready() == "True"
    assert cloud.node()["metadata"]["uid"] == "u2"


async def test_a_node_left_by_an_earlier_sandbox_is_replaced(cloud):
    cloud.kube.nodes[NODE] = {"metadata": {"name": NODE, "uid": "old"}}
    await cloud.arm.put("ws1")
    await cloud.pass_time(6)
    assert (cloud.ready(), cloud.node()["metadata"]["uid"]) == ("True", "u1")


async def test_a_write_that_fails_is_made_again(cloud):
    cloud.kube.fail = ServerUnavailable("down", status=503)
    await cloud.arm.put("ws1")
    await cloud.pass_time(3)
    assert cloud.kube.nodes == {}
    await cloud.pass_time(0.5)
    assert list(cloud.kube.nodes) == [NODE]


@pytest.mark.parametrize("after", [0.5, 10])
async def test_a_node_deleted_by_hand_does_not_come_back(cloud, after):
    """P3.18: a kubelet registers once; the pool can be deleted all the same."""
    await cloud.arm.put("ws1")
    await cloud.pass_time(3 + after)
    del cloud.kube.nodes[NODE]
    cloud.arm.script(nodes=[{"state": "NoGPU"}])
    await cloud.pass_time(60)
    assert cloud.kube.nodes == {}
    await cloud.arm.delete("ws1")
    await cloud.pass_time(2)
    assert cloud.kube.writes.count("create") == 1


async def test_a_stranger_s_node_of_that_name_is_left_alone(cloud):
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    cloud.node()["metadata"]["uid"] = "stranger"
    await cloud.arm.delete("ws1")
    await cloud.pass_time(60)
    assert list(cloud.kube.nodes) == [NODE]


async def test_many_pools_become_nodes_with_names_and_addresses_of_their_own(cloud):
    for number in range(10):
        await cloud.arm.put(f"ws{number}")
    await cloud.arm.put("two", body=pool_body(count=2))
    await cloud.pass_time(5)
    addresses = {node["status"]["addresses"][0]["address"] for node in cloud.kube.nodes.values()}
    assert len(addresses) == 12
    assert {cloud.ready(name) for name in cloud.kube.nodes} == {"True"}


async def test_a_pool_that_is_scaled_gets_and_loses_nodes(cloud):
    await cloud.arm.made("ws1")
    for count in (2, 1):
        await cloud.arm.put("ws1", body=pool_body(count=count))
        await cloud.pass_time(10)
        assert len(cloud.kube.nodes) == count


# The script's nodes -----------------------------------------------------------------------------


async def test_a_node_that_never_joins_joins_when_the_script_lets_it(cloud):
    """P5.20: never."""
    cloud.arm.script(nodes=[{"pool": "ws*", "state": "Never"}])
    await cloud.arm.put("ws1")
    await cloud.pass_time(60)
    assert cloud.kube.nodes == {}
    assert await cloud.arm.state("ws1") == "Succeeded"
    cloud.arm.script()
    await cloud.pass_time(2)
    assert cloud.ready() == "True"


async def test_a_node_that_is_never_ready_stays_so_while_the_script_says_it(cloud):
    """P5.20: never Ready."""
    cloud.arm.script(nodes=[{"state": "NeverReady"}])
    await cloud.arm.put("ws1")
    await cloud.pass_time(60)
    assert cloud.ready() == "False"
    assert "providerID" in cloud.node()["spec"]
    cloud.arm.script()
    await cloud.pass_time(0)
    assert cloud.ready() == "True"


async def test_a_node_without_a_gpu_plugin_has_no_gpus_until_it_runs(cloud):
    """P5.20: without GPUs. P7.8: a plugin that dies leaves the capacity."""
    cloud.arm.script(nodes=[{"state": "NoGPU"}])
    await cloud.arm.put("ws1")
    await cloud.pass_time(60)
    assert (cloud.ready(), cloud.gpus()) == ("True", (None, None))
    cloud.arm.script()
    await cloud.pass_time(0)
    assert cloud.gpus() == ("1", "1")
    cloud.arm.script(nodes=[{"state": "NoGPU"}])
    await cloud.pass_time(0)
    assert cloud.gpus() == ("1", "0")


async def test_an_instance_number_may_be_another_than_zero(cloud):
    """P5.20, R17: index ≠ 0."""
    cloud.arm.script(nodes=[{"pool": "ws1", "index": 5}])
    await cloud.arm.put("ws1")
    await cloud.pass_time(4)
    (name,) = cloud.kube.nodes
    assert name.endswith("-vmss000005")
    assert cloud.node(name)["spec"]["providerID"].endswith("/virtualMachines/5")


async def test_a_spot_vm_is_told_of_its_end_then_goes_and_the_pool_stays(cloud):
    """P7.11: VMEventScheduled, 30 s later Unknown, then the Node is deleted, pool still count 1."""
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    cloud.arm.script(nodes=[{"pool": "ws1", "state": "SpotEvicted"}])
    await cloud.pass_time(0)
    assert (cloud.condition("VMEventScheduled"), cloud.ready()) == ("True", "True")
    await cloud.pass_time(30)
    assert (cloud.ready(), cloud.power) == ("Unknown", [(NODE, False)])
    await cloud.pass_time(2)
    assert cloud.kube.nodes == {}
    said = await cloud.arm.get("ws1")
    assert (said.state, said.body["properties"]["count"]) == ("Succeeded", 1)
    assert cloud.arm.ledger.live == 1


async def test_a_spot_vm_that_has_failed_before_is_evicted_all_the_same(cloud):
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    cloud.fleet.set_power(NODE, is_on=False)
    cloud.arm.script(nodes=[{"state": "SpotEvicted"}])
    await cloud.pass_time(32)
    assert cloud.kube.nodes == {}
    assert cloud.power == [(NODE, False)]


async def test_spare_nodes_are_there_while_the_script_has_them(cloud):
    """design.md §9: spare, Nodes of no pool; no VM of the ledger."""
    spare = {"name": "own1", "vm_size": "Standard_NC12s_v3", "labels": {"apps": "phi"}}
    cloud.arm.script(spare=[spare])
    await cloud.pass_time(2)
    labels = cloud.node("own1")["metadata"]["labels"]
    assert (cloud.ready("own1"), cloud.gpus("own1")) == ("True", ("2", "2"))
    assert (labels["apps"], labels["kaito.sh/sandbox-node"]) == ("phi", "true")
    cloud.arm.script(spare=[spare], nodes=[{"state": "NoGPU"}])
    await cloud.pass_time(1)
    assert cloud.gpus("own1") == ("2", "2")
    cloud.arm.script()
    await cloud.pass_time(0)
    assert cloud.kube.nodes == {}
    assert cloud.arm.ledger.peak == 0


# Power ------------------------------------------------------------------------------------------


async def test_failing_and_recovering_reach_the_node_agent_and_write_nothing(cloud):
    """design.md §9: fail and recover; leases and reports are the agent's."""
    await cloud.arm.made("ws1")
    await cloud.pass_time(5)
    writes = list(cloud.kube.writes)
    for is_on in (False, True):
        assert cloud.fleet.set_power(NODE, is_on=is_on)
        await cloud.pass_time(60)
    assert cloud.power == [(NODE, False), (NODE, True)]
    assert cloud.kube.writes == writes


async def test_a_node_that_fails_before_it_is_ready_becomes_ready_when_it_recovers(cloud):
    await cloud.arm.put("ws1")
    await cloud.pass_time(3.5)
    cloud.fleet.set_power(NODE, is_on=False)
    await cloud.pass_time(60)
    assert cloud.ready() == "False"
    cloud.fleet.set_power(NODE, is_on=True)
    await cloud.pass_time(0)
    assert cloud.ready() == "True"


async def test_only_nodes_that_have_joined_have_power(cloud):
    await cloud.arm.put("ws1")
    assert not cloud.fleet.set_power(NODE, is_on=False)
    assert not cloud.fleet.set_power("other", is_on=False)
    assert cloud.power == []
