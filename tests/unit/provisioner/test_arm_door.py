"""What leaves the backend's door when ARM answers 404: an answer of its own, or a CloudError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace

import pytest
from aiohttp import web

from kaito.errors import CloudError, Never
from kaito.provisioner import registry
from kaito.provisioner.backends.byo import ByoBackend
from kaito.provisioner.interface import LaunchRequest, NodeBackend
from kaito.provisioner.inventory import Inventory
from tests.fakes.clock import FakeClock

NAME = "ws0a1b2c3d4"


def order() -> LaunchRequest:
    return LaunchRequest(
        name=NAME,
        claim_uid="uid-1",
        instance_type="Standard_NC6s_v3",
        storage_bytes=0,
        labels={"kaito.sh/workspace": "phi"},
        taints=(),
        claim_created_at=1_769_851_800.0,
        launched_at=1_769_851_805.0,
    )


async def _not_there(_request: web.Request) -> web.Response:
    body = {"code": "NotFound", "message": "Could not find managed cluster c"}
    return web.json_response(body, status=404)


@pytest.fixture
async def backend() -> AsyncIterator[NodeBackend]:
    """Agent pools of a managed cluster that is not there: every call is answered 404 NotFound."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _not_there)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    arm = SimpleNamespace(
        arm_url=f"http://127.0.0.1:{runner.addresses[0][1]}",
        subscription_id="s",
        resource_group="rg",
        cluster_name="c",
        tenant_id="t",
        is_loopback=True,
    )
    made = registry.create("agentpool", clock=FakeClock(), arm=arm)
    yield made
    await made.close()
    await runner.cleanup()


@pytest.mark.parametrize(
    "call",
    [lambda b: b.launch(order()), lambda b: b.list(), lambda b: b.cluster()],
    ids=["launch", "list", "cluster"],
)
async def test_a_404_that_is_no_pools_absence_names_the_cluster_and_what_to_check(
    backend: NodeBackend, call: Callable[[NodeBackend], Awaitable[object]]
):
    """P6.2, NodeBackend: CloudError and only that; anything else would end the pass or the run."""
    with pytest.raises(CloudError) as caught:
        await call(backend)
    assert caught.value.reason == "ClusterNotFound"
    assert "AZURE_CLUSTER_NAME" in caught.value.remedy
    assert not caught.value.may_be_done


async def test_a_pool_that_is_not_there_is_an_answer(backend: NodeBackend):
    """P5.12: absent is what a DELETE and an abort want."""
    assert await backend.get(NAME) is None
    await backend.abort(NAME)
    await backend.terminate(NAME)


async def test_only_a_lost_answer_leaves_open_what_became_of_the_call():
    """P5.36: told by one predicate, which the caller's next step hangs on."""
    away = SimpleNamespace(
        arm_url="http://127.0.0.1:1",
        subscription_id="s",
        resource_group="rg",
        cluster_name="c",
        tenant_id="t",
        is_loopback=True,
    )
    made = registry.create("agentpool", clock=FakeClock(), arm=away)
    with pytest.raises(CloudError) as caught:
        await made.launch(order())
    assert caught.value.may_be_done
    await made.close()


async def test_the_inventory_outlives_a_cluster_that_is_not_there(backend: NodeBackend):
    """W25: once its task ended, and the operator with it."""
    inventory = Inventory(backend, FakeClock(), jitter=lambda: 1.0)
    await inventory._list()
    assert inventory.failure is not None
    assert inventory.failure.reason == "ClusterNotFound"
    assert inventory.problem() is not None


async def test_a_claim_refused_for_want_of_a_provisioner_is_tried_again():
    """G11: who then runs the operator with --provisioner agentpool edits no claim."""
    with pytest.raises(CloudError) as caught:
        await ByoBackend().launch(order())
    assert not caught.value.terminal
    assert not isinstance(caught.value.retry, Never)
    assert caught.value.waits
    assert max(caught.value.waits) <= 600
    assert "--provisioner agentpool" in caught.value.remedy
