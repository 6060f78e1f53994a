"""What every ``NodeBackend`` keeps, on the in-memory one and on agent pools against simulated ARM.

The suite knows a cloud only by the port and a ``Cloud`` that can be told what to do next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import pytest

from kaito.clock import SystemClock
from kaito.errors import CloudError
from kaito.provisioner import registry
from kaito.provisioner.interface import InstanceState, LaunchRequest, NodeBackend, Taint, Word
from kaito.sandbox.aks import SimulatedAks
from tests.fakes.backend import InMemoryBackend, refusal
from tests.fakes.clock import FakeClock

LAUNCHED_AT = 1_769_851_805.0


def order(name: str = "ws0a1b2c3d4", uid: str = "uid-1", **changes: Any) -> LaunchRequest:
    given: dict[str, Any] = {
        "name": name,
        "claim_uid": uid,
        "instance_type": "Standard_NC6s_v3",
        "storage_bytes": 0,
        "labels": {"kaito.sh/workspace": "phi"},
        "taints": (Taint("sku", "NoSchedule", "gpu"),),
        "claim_created_at": LAUNCHED_AT - 5,
        "launched_at": LAUNCHED_AT,
    }
    return LaunchRequest(**(given | changes))


class Cloud(Protocol):
    """A backend under test and the hand that moves its cloud."""

    backend: NodeBackend

    async def settle(self) -> None:
        """Let what is under way come to its end."""
        ...

    async def make_foreign(self, name: str) -> None:
        """Somebody else makes an instance."""
        ...

    def refuse_quota(self) -> None:
        """From now on no launch is within quota."""
        ...

    def fail_list(self) -> None:
        """From now on no list is complete."""
        ...

    def delay_list(self, seconds: float) -> None:
        """From now on a list shows what was."""
        ...

    def lose_answer(self, operation: str) -> None:
        """Of the next such call, only the answer is lost."""
        ...


@dataclass
class InMemoryCloud:
    backend: InMemoryBackend
    clock: FakeClock

    async def settle(self) -> None:
        await self.clock.advance(60)

    async def make_foreign(self, name: str) -> None:
        self.backend.add_foreign(name)

    def refuse_quota(self) -> None:
        self.backend.refuse = lambda _: refusal("QuotaExceeded")

    def fail_list(self) -> None:
        self.backend.list_failure = refusal("CloudUnavailable")

    def delay_list(self, seconds: float) -> None:
        self.backend.stale_seconds = seconds

    def lose_answer(self, operation: str) -> None:
        self.backend.lose_answers.add(operation)


@dataclass
class AksCloud:
    backend: NodeBackend
    aks: SimulatedAks
    clock: FakeClock

    def tell(self, **script: Any) -> None:
        self.aks.set_script(script)

    async def settle(self) -> None:
        await self.clock.advance(60)

    async def make_foreign(self, name: str) -> None:
        site = self.aks.site
        url = (
            f"{self.aks.url}/subscriptions/{site.subscription_id}/resourceGroups/"
            f"{site.resource_group}/providers/Microsoft.ContainerService/managedClusters/"
            f"{site.cluster}/agentPools/{name}?api-version=2024-01-01"
        )
        body = {"properties": {"count": 1, "vmSize": "Standard_D4s_v5", "osType": "Linux"}}
        async with aiohttp.ClientSession() as http, http.put(url, json=body) as answer:
            assert answer.status == 201, await answer.text()

    def refuse_quota(self) -> None:
        self.tell(quota={"standardNCSv3Family": 0})

    def fail_list(self) -> None:
        self.tell(rules=[{"operation": "list", "status": 503}])

    def delay_list(self, seconds: float) -> None:
        self.tell(stale_list=seconds)

    def lose_answer(self, operation: str) -> None:
        self.tell(rules=[{"operation": operation, "times": 1, "apply": True, "drop": True}])


@dataclass(frozen=True)
class Target:
    arm_url: str
    subscription_id: str
    resource_group: str
    cluster_name: str
    tenant_id: str = ""
    client_id: str = ""
    federated_token_file: str = ""
    authority_host: str = ""
    is_loopback: bool = True


@asynccontextmanager
async def simulated_aks() -> AsyncIterator[AksCloud]:
    clock = FakeClock()
    simulated = SimulatedAks(kube=None, clock=clock)
    await simulated.start()
    site = simulated.site
    target = Target(simulated.url, site.subscription_id, site.resource_group, site.cluster)
    backend = registry.create("agentpool", clock=SystemClock(), arm=target)
    yield AksCloud(backend, simulated, clock)
    await backend.close()
    await simulated.stop()


@pytest.fixture
async def aks() -> AsyncIterator[AksCloud]:
    async with simulated_aks() as cloud:
        yield cloud


@pytest.fixture(params=["in-memory", "agentpool"])
async def cloud(request: pytest.FixtureRequest) -> AsyncIterator[Cloud]:
    if request.param == "in-memory":
        clock = FakeClock()
        yield InMemoryCloud(InMemoryBackend(clock), clock)
    else:
        async with simulated_aks() as simulated:
            yield simulated


async def test_a_launch_returns_at_once_and_shows_in_the_next_list(cloud: Cloud):
    """W1, W2: accepted is all that a launch waits for."""
    await cloud.backend.launch(order())
    (listed,) = await cloud.backend.list()
    assert listed.name == "ws0a1b2c3d4"
    assert listed.state is InstanceState.CREATING
    assert (listed.is_ours, listed.claim_uid) == (True, "uid-1")
    assert listed.launched_at == LAUNCHED_AT
    assert listed.instance_type == "Standard_NC6s_v3"


async def test_a_created_instance_is_ready_in_list_and_get(cloud: Cloud):
    await cloud.backend.launch(order())
    await cloud.settle()
    (listed,) = await cloud.backend.list()
    assert listed.state is InstanceState.READY
    assert await cloud.backend.get("ws0a1b2c3d4") == listed


async def test_launching_again_for_the_same_claim_is_success_and_no_second_machine(cloud: Cloud):
    """W3: what a restarted operator does."""
    await cloud.backend.launch(order())
    await cloud.backend.launch(order())
    assert len(await cloud.backend.list()) == 1


async def test_a_strangers_instance_is_never_changed(cloud: Cloud):
    """P2.4, W10."""
    await cloud.make_foreign("theirs")
    await cloud.settle()
    before = await cloud.backend.get("theirs")
    with pytest.raises(CloudError) as caught:
        await cloud.backend.launch(order("theirs"))
    assert caught.value.reason == "NameTaken"
    assert await cloud.backend.get("theirs") == before
    assert before is not None
    assert not before.is_ours


async def test_an_earlier_claims_instance_holds_the_launch_up(cloud: Cloud):
    """P2.4: a leftover is deleted and seen gone, never taken over."""
    await cloud.backend.launch(order(uid="uid-old"))
    await cloud.settle()
    with pytest.raises(CloudError) as caught:
        await cloud.backend.launch(order(uid="uid-new"))
    assert caught.value.reason == "OperationInProgress"
    present = await cloud.backend.get("ws0a1b2c3d4")
    assert present is not None
    assert present.claim_uid == "uid-old"


async def test_a_dying_instance_holds_the_launch_up(cloud: Cloud):
    """P5.12."""
    await cloud.backend.launch(order())
    await cloud.settle()
    await cloud.backend.terminate("ws0a1b2c3d4")
    with pytest.raises(CloudError) as caught:
        await cloud.backend.launch(order())
    assert caught.value.reason == "OperationInProgress"


async def test_termination_goes_by_way_of_deleting_to_absent(cloud: Cloud):
    """P3.13."""
    await cloud.backend.launch(order())
    await cloud.settle()
    await cloud.backend.terminate("ws0a1b2c3d4")
    (listed,) = await cloud.backend.list()
    assert listed.state is InstanceState.DELETING
    await cloud.settle()
    assert await cloud.backend.list() == ()
    assert await cloud.backend.get("ws0a1b2c3d4") is None


async def test_terminating_what_is_not_there_is_success(cloud: Cloud):
    """U9, U11, G8: and it is the cloud's word that nothing is there."""
    assert await cloud.backend.terminate("nothere") is Word.ABSENT
    await cloud.backend.abort("nothere")


async def test_terminating_twice_is_success(cloud: Cloud):
    """U13."""
    await cloud.backend.launch(order())
    await cloud.settle()
    assert await cloud.backend.terminate("ws0a1b2c3d4") is Word.GOING
    assert await cloud.backend.terminate("ws0a1b2c3d4") is Word.GOING


async def test_a_list_that_is_behind_misleads_no_other_call(cloud: Cloud):
    """G8: what the calls and a look answer is live."""
    cloud.delay_list(30.0)
    await cloud.backend.launch(order())
    assert await cloud.backend.list() == ()
    assert await cloud.backend.get("ws0a1b2c3d4") is not None
    await cloud.settle()
    (listed,) = await cloud.backend.list()
    await cloud.backend.terminate("ws0a1b2c3d4")
    assert await cloud.backend.list() == (listed,)


async def test_a_creation_can_be_aborted_and_then_deleted(cloud: Cloud):
    """W14."""
    await cloud.backend.launch(order())
    await cloud.backend.abort("ws0a1b2c3d4")
    await cloud.backend.terminate("ws0a1b2c3d4")
    await cloud.settle()
    assert await cloud.backend.list() == ()


async def test_aborting_what_is_idle_is_success(cloud: Cloud):
    """P5.12."""
    await cloud.backend.launch(order())
    await cloud.settle()
    await cloud.backend.abort("ws0a1b2c3d4")
    (listed,) = await cloud.backend.list()
    assert listed.state is InstanceState.READY


async def test_a_refused_launch_says_why_and_when_to_try_again_and_makes_nothing(cloud: Cloud):
    """W12."""
    cloud.refuse_quota()
    with pytest.raises(CloudError) as caught:
        await cloud.backend.launch(order())
    assert caught.value.reason == "QuotaExceeded"
    assert caught.value.waits
    assert caught.value.remedy
    assert await cloud.backend.list() == ()


async def test_a_list_is_complete_or_an_error(cloud: Cloud):
    """P3.16: never a part."""
    await cloud.backend.launch(order())
    cloud.fail_list()
    with pytest.raises(CloudError) as caught:
        await cloud.backend.list()
    assert caught.value.reason == "CloudUnavailable"


async def test_a_launch_whose_answer_is_lost_may_have_taken_effect(cloud: Cloud):
    """P5.36: the next list tells."""
    cloud.lose_answer("put")
    with pytest.raises(CloudError) as caught:
        await cloud.backend.launch(order())
    assert caught.value.reason == "CloudUnavailable"
    assert len(await cloud.backend.list()) == 1
    await cloud.backend.launch(order())
    assert len(await cloud.backend.list()) == 1


async def test_the_cluster_answers_where_it_is(cloud: Cloud):
    """P5.8."""
    info = await cloud.backend.cluster()
    assert info.location
    assert info.is_settled


# What only agent pools have -----------------------------------------------------------------------


async def test_a_deletion_answered_204_is_the_word_that_there_is_none(aks: AksCloud):
    """P5.12: 404 is the usual answer."""
    aks.tell(delete_absent=204)
    assert await aks.backend.terminate("nothere") is Word.ABSENT


async def test_every_page_of_a_long_list_is_read(aks: AksCloud):
    """P5.7, U16."""
    aks.tell(page_size=2)
    for index in range(5):
        await aks.backend.launch(order(f"pool{index}"))
    assert len(await aks.backend.list()) == 5


async def test_a_page_that_fails_fails_the_list(aks: AksCloud):
    """U17."""
    for index in range(3):
        await aks.backend.launch(order(f"pool{index}"))
    aks.tell(page_size=1, rules=[{"operation": "list", "after": 1, "status": 500}])
    with pytest.raises(CloudError):
        await aks.backend.list()


async def test_a_stopped_cluster_is_told_from_a_busy_one(aks: AksCloud):
    """P5.14, P6.2: one look at the cluster."""
    aks.tell(cluster={"power_state": "Stopped"})
    with pytest.raises(CloudError) as caught:
        await aks.backend.launch(order())
    assert caught.value.reason == "ClusterStopped"
    aks.tell(cluster={"provisioning_state": "Upgrading"})
    with pytest.raises(CloudError) as caught:
        await aks.backend.launch(order())
    assert caught.value.reason == "ClusterBusy"


async def test_a_missing_cluster_says_nothing_about_pools(aks: AksCloud):
    """P5.16, W16."""
    aks.tell(rules=[{"operation": "get", "status": 404, "code": "ResourceNotFound"}])
    with pytest.raises(CloudError) as caught:
        await aks.backend.get("pool1")
    assert caught.value.reason == "ClusterNotFound"


async def test_a_throttle_is_obeyed_and_never_retried_by_the_sdk(aks: AksCloud):
    """P5.31, P6.2."""
    aks.tell(rules=[{"operation": "list", "status": 429, "code": "Throttled", "retry_after": 9}])
    before = aks.aks.calls["list"]
    with pytest.raises(CloudError) as caught:
        await aks.backend.list()
    assert caught.value.waits == (9.0,)
    assert aks.aks.calls["list"] - before == 1


async def test_a_refused_token_is_a_credential_to_be_checked(aks: AksCloud):
    """P5.33, P6.2."""
    aks.tell(rules=[{"operation": "list", "status": 401, "code": "AuthenticationFailed"}])
    with pytest.raises(CloudError) as caught:
        await aks.backend.list()
    assert (caught.value.reason, caught.value.code) == ("CredentialInvalid", "AuthenticationFailed")


async def test_a_success_with_broken_json_is_an_unknown_outcome(aks: AksCloud):
    """P5.33."""
    aks.tell(rules=[{"operation": "put", "apply": True, "status": 201, "message": "{", "times": 1}])
    with pytest.raises(CloudError) as caught:
        await aks.backend.launch(order())
    assert caught.value.reason == "CloudUnavailable"


async def test_an_error_without_json_is_read_by_its_status(aks: AksCloud):
    """P5.10."""
    aks.tell(rules=[{"operation": "list", "status": 502, "message": "<html>"}])
    with pytest.raises(CloudError) as caught:
        await aks.backend.list()
    assert caught.value.reason == "CloudUnavailable"


async def test_a_failed_creation_tells_its_cause(aks: AksCloud):
    """P5.18, W13."""
    aks.tell(pools=[{"state": "Failed", "code": "AllocationFailed"}])
    await aks.backend.launch(order())
    await aks.settle()
    (listed,) = await aks.backend.list()
    assert listed.state is InstanceState.FAILED
    assert listed.fault is not None
    assert listed.fault.reason == "CapacityUnavailable"


async def test_bad_names_are_refused_before_any_call(aks: AksCloud):
    """P4.1, P5.27: an empty name would address all pools."""
    for name in ("", "Upper", "has-dash", "x" * 13):
        with pytest.raises(CloudError):
            await aks.backend.launch(order(name))
        with pytest.raises(CloudError):
            await aks.backend.terminate(name)
    assert not any(aks.aks.calls.values())


async def test_nobody_at_the_other_end_is_an_unavailable_cloud():
    """P5.33."""
    backend = registry.create(
        "agentpool", clock=SystemClock(), arm=Target("http://127.0.0.1:9", "s", "rg", "c")
    )
    with pytest.raises(CloudError) as caught:
        await backend.list()
    assert caught.value.reason == "CloudUnavailable"
    await backend.close()
