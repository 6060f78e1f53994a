"""The server: its socket, and the sandbox's own interface (design.md §9)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from kaito.clock import SystemClock
from kaito.sandbox.aks import SimulatedAks
from kaito.sandbox.script import Latency, Script, ScriptError
from tests.fakes.arm import pool_body
from tests.fakes.nodes import FakeNodes

FAST = {"create": 0, "join": 0, "ready": 0, "delete": 0}


@pytest.fixture
async def kube() -> FakeNodes:
    return FakeNodes()


@pytest.fixture
async def aks(kube: FakeNodes) -> AsyncIterator[SimulatedAks]:
    aks = SimulatedAks(kube=kube, clock=SystemClock())  # type: ignore[arg-type]
    aks.set_script({"latency": FAST})
    await aks.start()
    yield aks
    await aks.stop()


@pytest.fixture
async def http(aks: SimulatedAks) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(aks.url) as session:
        yield session


def pool_path(aks: SimulatedAks, name: str) -> str:
    where = aks.environment()
    return (
        f"/subscriptions/{where['ARM_SUBSCRIPTION_ID']}/resourceGroups/"
        f"{where['ARM_RESOURCE_GROUP']}/providers/Microsoft.ContainerService/managedClusters/"
        f"{where['AZURE_CLUSTER_NAME']}/agentPools/{name}?api-version=2026-08-01"
    )


async def seen(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as answer:
        assert answer.status == 200
        return await answer.json()


async def test_a_pool_and_its_node_come_and_are_in_the_ledger(aks, http, kube):
    async with http.put(pool_path(aks, "ws1"), json=pool_body()) as answer:
        assert answer.status == 201
        assert answer.headers["Azure-AsyncOperation"].startswith(aks.url)
        assert answer.content_type == "application/json"
    ledger = await seen(http, "/sandbox/ledger")
    assert (ledger["live"], ledger["peak"], ledger["calls"]["put"]) == (1, 1, 1)
    assert [(vm["pool"], vm["deleted"]) for vm in ledger["vms"]] == [("ws1", None)]
    assert aks.calls["put"] == 1
    assert aks.ledger()["live"] == 1
    assert len(kube.nodes) == 1


async def test_a_script_is_put_read_and_taken_back(aks, http):
    async with http.put("/sandbox/script", json={"page_size": 3}) as answer:
        assert answer.status == 200
    assert (await seen(http, "/sandbox/script"))["page_size"] == 3
    assert aks.script.page_size == 3
    async with http.delete("/sandbox/script") as answer:
        assert answer.status == 200
    assert aks.script == Script()


async def test_a_bad_script_is_refused_by_field_and_the_old_one_stays(aks, http):
    async with http.put("/sandbox/script", json={"latency": {"boot": 1}}) as answer:
        assert answer.status == 400
        assert "boot" in (await answer.json())["error"]["message"]
    assert aks.script.latency.create == 0
    with pytest.raises(ScriptError):
        aks.set_script({"latency": {"boot": 1}})


async def test_a_script_may_be_given_as_an_object(aks):
    aks.set_script(Script(latency=Latency(create=9)))
    assert aks.script.latency.create == 9


async def test_a_node_is_cut_off_and_brought_back(aks, http, kube):
    told = []
    aks.on_node_power = lambda name, is_on: told.append((name, is_on))
    async with http.put(pool_path(aks, "ws1"), json=pool_body()):
        pass
    await seen(http, "/sandbox/ledger")
    (name,) = kube.nodes
    for verb in ("fail", "recover"):
        async with http.post(f"/sandbox/nodes/{name}/{verb}") as answer:
            assert answer.status == 200
    assert told == [(name, False), (name, True)]
    async with http.post("/sandbox/nodes/other/fail") as answer:
        assert answer.status == 404


async def test_a_dropped_call_closes_the_connection(aks, http):
    aks.set_script({"rules": [{"operation": "get", "drop": True}]})
    with pytest.raises(aiohttp.ClientConnectionError):
        await http.get(pool_path(aks, "ws1"))


async def test_stopping_does_not_wait_for_a_call_that_hangs(aks, http):
    aks.set_script({"rules": [{"operation": "get", "hang": True}]})
    with pytest.raises(TimeoutError):
        await http.get(pool_path(aks, "ws1"), timeout=aiohttp.ClientTimeout(total=0.05))
    await aks.stop()


async def test_a_cloud_without_a_cluster_has_pools_and_no_nodes():
    aks = SimulatedAks(kube=None, clock=SystemClock())
    await aks.start()
    async with aiohttp.ClientSession(aks.url) as http:
        async with http.put(pool_path(aks, "ws1"), json=pool_body()) as answer:
            assert answer.status == 201
        async with http.post("/sandbox/nodes/any/fail") as answer:
            assert answer.status == 404
    await aks.stop()
    await aks.stop()


async def test_the_environment_is_what_an_operator_needs(aks):
    """design.md §9: the AZURE_* and ARM_* settings."""
    assert aks.environment() == {
        "AZURE_RESOURCE_MANAGER_URL": aks.url,
        "ARM_SUBSCRIPTION_ID": aks.site.subscription_id,
        "ARM_RESOURCE_GROUP": "sandbox",
        "AZURE_CLUSTER_NAME": "kaito",
        "AZURE_TENANT_ID": "5a0d0000-0000-4000-8000-000000000002",
        "AZURE_NODE_RESOURCE_GROUP": "MC_sandbox_kaito_eastus",
        "LOCATION": "eastus",
    }


async def test_a_fleet_that_breaks_is_heard_of_when_the_cloud_stops(aks, http, kube):
    kube.fail = ZeroDivisionError("a bug")
    async with http.put(pool_path(aks, "ws1"), json=pool_body()):
        pass
    await seen(http, "/sandbox/ledger")
    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await aks.stop()
