"""The simulated AKS as the real Azure SDK and a real API server see it (facts §5.4, §7)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from azure.core import MatchConditions
from azure.core.credentials import AccessToken
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline import policies
from azure.core.rest import HttpRequest
from azure.mgmt.containerservice.aio import ContainerServiceClient

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import SystemClock
from kaito.kube.resources import Kind
from kaito.sandbox.aks import SimulatedAks
from tests.fakes.arm import pool_body

if TYPE_CHECKING:
    from kaito.kube.client import KubeClient

NODES = Kind("", "v1", "Node", "nodes", False, decode_owned)
FAST = {"create": 0.2, "join": 0.1, "ready": 0.1, "delete": 0.2}


class Credential:
    """Never asked: no authentication policy on loopback (P5.29)."""

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        raise AssertionError(scopes)

    async def close(self) -> None: ...

    async def __aexit__(self, *args: object) -> None: ...


class Sdk:
    """azure-mgmt-containerservice without hidden behaviour (P5.21), bound to one cluster."""

    def __init__(self, aks: SimulatedAks) -> None:
        self.client = ContainerServiceClient(
            Credential(),  # type: ignore[arg-type]
            aks.site.subscription_id,
            base_url=aks.url,
            policies=[
                policies.RequestIdPolicy(),
                policies.HeadersPolicy({"x-ms-correlation-request-id": "run-1"}),
                policies.UserAgentPolicy("kaito/test"),
                policies.ContentDecodePolicy(),
            ],
            connection_timeout=10,
            read_timeout=5,
            use_env_settings=False,
        )
        self.pools = self.client.agent_pools
        self.where = (aks.site.resource_group, aks.site.cluster)

    async def put(self, name: str, body: Any = None, **options: Any) -> tuple[Any, int, Any]:
        poller = await self.pools.begin_create_or_update(
            *self.where,
            name,
            body or pool_body(),
            polling=False,
            cls=lambda answer, pool, _: (
                pool,
                answer.http_response.status_code,
                answer.http_response.headers,
            ),
            **options,
        )
        return await poller.result()

    async def delete(self, name: str, **options: Any) -> None:
        poller = await self.pools.begin_delete(*self.where, name, polling=False, **options)
        assert await poller.result() is None

    async def state(self, name: str) -> str | None:
        try:
            pool = await self.pools.get(*self.where, name)
        except ResourceNotFoundError:
            return None
        return pool["properties"]["provisioningState"]

    async def until(self, name: str, state: str | None) -> None:
        async def is_there() -> bool:
            return await self.state(name) == state

        await until(is_there)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds: what is asked is in another process, or behind its HTTP interface."""
    async with asyncio.timeout(10):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.fixture
async def aks() -> AsyncIterator[SimulatedAks]:
    aks = SimulatedAks(kube=None, clock=SystemClock())
    aks.set_script({"latency": FAST})
    await aks.start()
    yield aks
    await aks.stop()


@pytest.fixture
async def sdk(aks: SimulatedAks) -> AsyncIterator[Sdk]:
    sdk = Sdk(aks)
    yield sdk
    await sdk.client.close()


async def test_one_put_is_one_request_and_shows_a_pool_that_is_being_created(aks, sdk):
    """P5.21, P5.23: polling off, status and headers by cls."""
    pool, status, headers = await sdk.put("ws1", match_condition=MatchConditions.IfMissing)
    assert (status, pool.provisioning_state, pool.name) == (201, "Creating", "ws1")
    assert pool["properties"]["vmSize"] == pool.vm_size == "Standard_NC6s_v3"
    assert headers["x-ms-correlation-request-id"] == "run-1"
    assert headers["ETag"] == pool.e_tag
    assert aks.calls == {"put": 1, "get": 0, "list": 0, "delete": 0, "abort": 0}


async def test_a_pool_is_created_found_and_deleted(aks, sdk):
    """P5.22: get, list, delete; P5.25: models are mappings."""
    await sdk.put("ws1")
    await sdk.until("ws1", "Succeeded")
    (pool,) = [pool async for pool in sdk.pools.list(*sdk.where)]
    assert pool["properties"]["nodeLabels"] == {"kaito.sh/workspace": "phi"}
    await sdk.delete("ws1", ignore_pod_disruption_budget=True)
    assert await sdk.state("ws1") == "Deleting"
    await sdk.until("ws1", None)
    assert (aks.ledger()["live"], aks.ledger()["peak"]) == (0, 1)


async def test_the_sdk_s_own_polling_comes_to_its_end(aks, sdk):
    """P5.1 a, d, g: Azure-AsyncOperation is followed to Succeeded; P5.37: the pool is read last."""
    poller = await sdk.pools.begin_create_or_update(
        *sdk.where, "ws1", pool_body(), polling_interval=0.1
    )
    pool = await poller.result()
    assert pool.provisioning_state == "Succeeded"
    deletion = await sdk.pools.begin_delete(*sdk.where, "ws1", polling_interval=0.1)
    await deletion.result()
    assert await sdk.state("ws1") is None


async def test_a_failed_operation_raises_with_its_code(aks, sdk):
    """P5.33: operation Failed, polling on: status 200 and the operation's code."""
    aks.set_script({"latency": FAST, "pools": [{"state": "Failed", "code": "AllocationFailed"}]})
    poller = await sdk.pools.begin_create_or_update(
        *sdk.where, "ws1", pool_body(), polling_interval=0.1
    )
    with pytest.raises(HttpResponseError) as failed:
        await poller.result()
    assert failed.value.status_code == 200
    pool = await sdk.pools.get(*sdk.where, "ws1")
    error = pool["properties"]["status"]["provisioningError"]
    assert [detail["code"] for detail in error["details"]] == ["AllocationFailed"]


async def test_an_abort_is_taken(aks, sdk):
    """P5.22: POST …/abort."""
    aks.set_script({"latency": FAST, "pools": [{"state": "Stuck"}]})
    await sdk.put("ws1")
    await (await sdk.pools.begin_abort_latest_operation(*sdk.where, "ws1", polling=False)).result()
    await sdk.until("ws1", "Canceled")


async def test_the_cluster_and_an_operation_are_read(aks, sdk):
    """P5.22: managed_clusters.get; send_request for an operation's detail."""
    cluster = await sdk.client.managed_clusters.get(*sdk.where)
    assert (cluster.location, cluster.node_resource_group) == ("eastus", "MC_sandbox_kaito_eastus")
    assert (cluster.power_state.code, cluster.provisioning_state) == ("Running", "Succeeded")
    _, _, headers = await sdk.put("ws1")
    path = headers["Azure-AsyncOperation"].removeprefix(aks.url)
    answer = await sdk.client.send_request(HttpRequest("GET", path))
    assert (answer.status_code, answer.json()["status"]) == (200, "InProgress")


async def test_pages_are_followed_on_the_same_host(aks, sdk):
    """P5.7, P5.26: by_page, continuation_token is the nextLink."""
    for name in ("a", "b", "c"):
        await sdk.put(name)
    aks.set_script({"page_size": 2})
    pages = sdk.pools.list(*sdk.where).by_page()
    first = [pool.name async for pool in await anext(pages)]
    assert pages.continuation_token.startswith(f"{aks.url}/subscriptions/")
    rest = [pool.name async for page in pages for pool in [p async for p in page]]
    assert (first, rest, pages.continuation_token) == (["a", "b"], ["c"], None)


@pytest.mark.parametrize(
    ("told", "error", "status", "code"),
    [
        ({"status": 400, "code": "QuotaExceeded"}, HttpResponseError, 400, "QuotaExceeded"),
        ({"status": 403}, HttpResponseError, 403, "AuthorizationFailed"),
        (
            {"status": 404, "code": "ResourceNotFound"},
            ResourceNotFoundError,
            404,
            "ResourceNotFound",
        ),
        ({"status": 409}, ResourceExistsError, 409, "OperationNotAllowed"),
        ({"status": 429, "code": "Throttled"}, HttpResponseError, 429, "Throttled"),
    ],
)
async def test_error_bodies_of_both_shapes_are_read_by_the_sdk(aks, sdk, told, error, status, code):
    """P5.10, P5.33, P5.34."""
    aks.set_script({"rules": [{"operation": "put", "retry_after": 3, **told}]})
    with pytest.raises(error) as raised:
        await sdk.put("ws1")
    assert (raised.value.status_code, raised.value.error.code) == (status, code)
    assert raised.value.response.headers["Retry-After"] == "3"


async def test_a_refused_quota_is_nested_and_has_its_numbers(aks, sdk):
    """P5.19, P6.1, P6.4."""
    aks.set_script({"quota": {"standardNCSv3Family": 0}})
    with pytest.raises(HttpResponseError) as refused:
        await sdk.put("ws1")
    assert refused.value.status_code == 400
    assert [detail.code for detail in refused.value.error.details] == ["QuotaExceeded"]
    assert "Current Limit: 0, Current Usage: 0, Additional Required: 6" in refused.value.message


async def test_preconditions_raise_what_the_sdk_says(aks, sdk):
    """P5.13, P5.33: 412 with IfMissing, and with another ETag."""
    await sdk.put("ws1")
    with pytest.raises(ResourceExistsError) as exists:
        await sdk.put("ws1", match_condition=MatchConditions.IfMissing)
    assert exists.value.status_code == 412
    with pytest.raises(ResourceModifiedError) as modified:
        await sdk.delete("ws1", etag='"other"', match_condition=MatchConditions.IfNotModified)
    assert modified.value.status_code == 412


async def test_an_answer_lost_after_the_effect_leaves_the_pool(aks, sdk):
    """P5.36, R19: cut, or a broken body; the PUT has taken effect.

    A cut before the first byte is a ServiceRequestError here, as one that was never sent (P5.33).
    """
    rules: list[Mapping[str, Any]] = [
        {"operation": "put", "pool": "cut", "drop": True, "apply": True},
        {"operation": "put", "pool": "torn", "apply": True, "status": 201, "message": "{"},
    ]
    aks.set_script({"rules": rules})
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        await sdk.put("cut")
    with pytest.raises((json.JSONDecodeError, HttpResponseError)):
        await sdk.put("torn")
    assert [pool.name async for pool in sdk.pools.list(*sdk.where)] == ["cut", "torn"]


@pytest.mark.controlplane
async def test_nodes_join_a_real_cluster_and_leave_it(real_kube: KubeClient):
    """P7.1, P7.2, P7.3: admission and the node lifecycle controller do their part."""
    aks = SimulatedAks(kube=real_kube, clock=SystemClock())
    aks.set_script({"latency": {"create": 4, "join": 0.2, "ready": 1, "delete": 2}})
    await aks.start()
    sdk = Sdk(aks)
    name = f"aks-real1-{aks.site.vmss_digits}-vmss000000"

    async def node(*, ready: bool = False, taints: frozenset[str] | None = None) -> bool:
        found = await real_kube.get(NODES, "", name)
        seen.append(found)
        if found is None or taint_keys(found) != (taints or taint_keys(found)):
            return False
        return not ready or is_ready(found)

    seen: list[Owned | None] = []
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(aks.stop)
        stack.push_async_callback(sdk.client.close)
        await sdk.put("real1")

        await until(node)
        joined = seen[-1]
        assert joined is not None
        assert {"sku", "node.kubernetes.io/not-ready"} <= taint_keys(joined)
        assert joined.metadata.labels["kubernetes.azure.com/agentpool"] == "real1"
        assert joined.metadata.labels["kaito.sh/workspace"] == "phi"

        await until(lambda: node(ready=True))
        assert await sdk.state("real1") == "Creating"
        body: Any = seen[-1].body if seen[-1] is not None else {}
        assert body["spec"]["providerID"].startswith("azure:///subscriptions/")
        assert body["status"]["allocatable"]["nvidia.com/gpu"] == "1"
        await until(lambda: node(taints=frozenset({"sku"})))
        await sdk.until("real1", "Succeeded")

        await sdk.delete("real1")

        async def is_gone() -> bool:
            return not await node()

        await until(is_gone)
        assert await sdk.state("real1") == "Deleting"
        await sdk.until("real1", None)


def taint_keys(node: Owned) -> frozenset[str]:
    spec: Any = node.body["spec"]
    return frozenset(taint["key"] for taint in spec.get("taints") or ())


def is_ready(node: Owned) -> bool:
    status: Any = node.body["status"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
