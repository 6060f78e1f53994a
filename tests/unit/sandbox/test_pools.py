"""The pools' state machine, by the statements of facts §5.3."""

from __future__ import annotations

import pytest

from tests.fakes.arm import FakeArm, pool_body


@pytest.fixture
def arm() -> FakeArm:
    return FakeArm()


# P5.11 transitions ------------------------------------------------------------------------------


async def test_a_put_of_a_new_pool_is_creating_until_the_latency_has_passed(arm):
    """P5.11, P5.12 none, PUT: 201 Creating, then Succeeded."""
    said = await arm.put("ws1")
    assert (said.status, said.state) == (201, "Creating")
    await arm.clock.advance(3.9)
    assert await arm.state("ws1") == "Creating"
    await arm.clock.advance(0.1)
    assert await arm.state("ws1") == "Succeeded"


async def test_a_put_of_a_settled_pool_is_updating_then_succeeded(arm):
    """P5.11, P5.12 Succeeded, PUT: 200 Updating. P4.8: another body changes the pool silently."""
    await arm.made("ws1")
    said = await arm.put("ws1", body=pool_body(nodeLabels={"kaito.sh/workspace": "other"}))
    assert (said.status, said.state) == (200, "Updating")
    await arm.clock.advance(4)
    said = await arm.get("ws1")
    assert said.state == "Succeeded"
    assert said.body["properties"]["nodeLabels"] == {"kaito.sh/workspace": "other"}


async def test_a_deletion_leaves_nothing_after_its_latency(arm):
    """P5.11, P5.12 Succeeded, DELETE: 202 Deleting, then gone."""
    await arm.made("ws1")
    assert (await arm.delete("ws1")).status == 202
    assert await arm.state("ws1") == "Deleting"
    await arm.clock.advance(2)
    assert await arm.state("ws1") is None
    assert await arm.list() == []


async def test_a_delete_preempts_a_running_creation(arm):
    """P5.12 Creating, DELETE: 202; the creation fails with AKSOperationPreemptedByDelete."""
    said = await arm.put("ws1")
    creation = arm.pools.operation(said.headers["Azure-AsyncOperation"].split("/")[-1][:36])
    assert (await arm.delete("ws1")).status == 202
    assert (creation.status, creation.error["code"]) == ("Failed", "AKSOperationPreemptedByDelete")
    await arm.clock.advance(10)
    assert await arm.state("ws1") is None


async def test_a_service_that_does_not_preempt_answers_409():
    """P5.12 Creating, DELETE: the option."""
    arm = FakeArm(delete_preempts=False)
    await arm.put("ws1")
    said = await arm.delete("ws1")
    assert (said.status, said.code) == (409, "OperationNotAllowed")


async def test_a_second_delete_gets_the_same_operation(arm):
    """P5.12 Deleting, DELETE: 202, same operation."""
    await arm.made("ws1")
    first, second = await arm.delete("ws1"), await arm.delete("ws1")
    assert second.status == 202
    assert first.headers["Location"] == second.headers["Location"]


async def test_a_put_of_a_pool_that_is_being_deleted_is_refused(arm):
    """P5.12 Deleting, PUT: 409."""
    await arm.made("ws1")
    await arm.delete("ws1")
    said = await arm.put("ws1")
    assert (said.status, said.code) == (409, "OperationNotAllowed")
    assert "only allowed operation is deletion" in said.message


async def test_a_put_of_a_busy_pool_is_refused_and_names_the_operation(arm):
    """P5.12 Creating, PUT: 409. P5.14: the message."""
    await arm.put("ws1")
    said = await arm.put("ws1")
    assert (said.status, said.code) == (409, "OperationNotAllowed")
    assert "Another agentpool operation (ws1 - Creating) is in progress" in said.message


async def test_an_abort_cancels_and_rolls_nothing_back(arm):
    """P5.11: busy, abort: Canceling, Canceled; the VM may exist and bill."""
    await arm.put("ws1")
    assert (await arm.abort("ws1")).status == 202
    assert await arm.state("ws1") == "Canceling"
    await arm.clock.advance(1)
    assert await arm.state("ws1") == "Canceled"
    await arm.clock.advance(60)
    assert await arm.state("ws1") == "Canceled"
    assert arm.ledger.live == 1


@pytest.mark.parametrize("prepare", ["settled", "deleting", "canceling"])
async def test_an_abort_with_nothing_to_abort_is_refused(arm, prepare):
    """P5.12: abort of a settled or a deleting pool: 409."""
    await arm.put("ws1")
    if prepare == "settled":
        await arm.clock.advance(4)
    elif prepare == "deleting":
        await arm.delete("ws1")
    else:
        await arm.abort("ws1")
    said = await arm.abort("ws1")
    assert (said.status, said.code) == (409, "OperationNotAllowed")


async def test_a_cancelled_pool_can_be_put_again_and_deleted(arm):
    """P5.11: Canceled, PUT: Updating; any, DELETE: Deleting."""
    await arm.put("ws1")
    await arm.abort("ws1")
    await arm.clock.advance(1)
    assert (await arm.put("ws1")).state == "Updating"
    assert (await arm.delete("ws1")).status == 202


async def test_what_is_absent_is_not_found(arm):
    """P5.12 none: GET, DELETE and abort say 404 NotFound."""
    for said in (await arm.get("ws1"), await arm.delete("ws1"), await arm.abort("ws1")):
        assert (said.status, said.code) == (404, "NotFound")


async def test_a_delete_of_nothing_is_204_when_the_script_says_so(arm):
    """P5.12 none, DELETE: the option 204."""
    arm.script(delete_absent=204)
    assert (await arm.delete("ws1")).status == 204


# P5.13 preconditions ----------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 4])
async def test_if_none_match_refuses_a_pool_in_any_state(arm, seconds):
    """P5.13: If-None-Match: * and the pool exists in any state: 412, before the 409 of busy."""
    await arm.put("ws1")
    await arm.clock.advance(seconds)
    said = await arm.put("ws1", headers={"if-none-match": "*"})
    assert (said.status, said.code) == (412, "PreconditionFailed")


async def test_if_none_match_lets_a_new_pool_through(arm):
    assert (await arm.put("ws1", headers={"if-none-match": "*"})).status == 201


async def test_if_match_wants_the_etag_of_now(arm):
    """P5.13: another ETag, or no pool: 412. P5.6: the ETag moves with the state."""
    creating = (await arm.put("ws1")).headers["ETag"]
    await arm.clock.advance(4)
    for name, etag in (("ws1", creating), ("ws2", creating)):
        assert (await arm.delete(name, headers={"if-match": etag})).status == 412
    current = (await arm.get("ws1")).headers["ETag"]
    assert current != creating
    assert (await arm.delete("ws1", headers={"if-match": current})).status == 202


@pytest.mark.parametrize(
    ("since", "api", "status"),
    [("2024-09-01", "2024-01-01", 200), ("2024-09-01", "2024-09-01", 412)],
)
async def test_preconditions_are_ignored_below_the_version_that_has_them(since, api, status):
    """P5.13: ignored below 2024-09-01 (switch)."""
    arm = FakeArm(preconditions_since=since)
    await arm.made("ws1")
    assert (await arm.put("ws1", api=api, headers={"if-none-match": "*"})).status == status


# P5.14, P5.15 gates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cluster", [{"power_state": "Stopped"}, {"provisioning_state": "Upgrading"}]
)
async def test_a_cluster_that_is_stopped_or_busy_takes_no_put_and_no_delete(arm, cluster):
    """P5.14: the cluster gate."""
    await arm.made("ws1")
    arm.script(cluster=cluster)
    for said in (await arm.put("ws2"), await arm.delete("ws1")):
        assert (said.status, said.code) == (409, "OperationNotAllowed")
        assert "managed cluster is in Provisioning State(" in said.message
    assert await arm.list() == ["ws1"]


async def test_pools_are_created_at_once_or_one_by_one():
    """P5.15: the option."""
    at_once, one_by_one = FakeArm(), FakeArm(parallel_puts=False)
    for arm in (at_once, one_by_one):
        await arm.put("ws1")
    assert (await at_once.put("ws2")).status == 201
    said = await one_by_one.put("ws2")
    assert (said.status, said.code) == (409, "OperationNotAllowed")
    assert "(ws1 - Creating)" in said.message
    await one_by_one.clock.advance(4)
    assert (await one_by_one.put("ws2")).status == 201


# P5.18 failures ---------------------------------------------------------------------------------


async def test_a_creation_that_fails_leaves_a_failed_pool_with_its_cause(arm):
    """P5.18: operation Failed, pool Failed, the cause nested in details (P5.10)."""
    arm.script(pools=[{"pool": "ws1", "state": "Failed", "code": "ZonalAllocationFailed"}])
    said = await arm.put("ws1")
    operation = arm.pools.operation(said.headers["Azure-AsyncOperation"].split("/")[-1][:36])
    await arm.clock.advance(4)
    said = await arm.get("ws1")
    error = said.body["properties"]["status"]["provisioningError"]
    assert said.state == "Failed"
    assert [cause["code"] for cause in error["details"]] == ["ZonalAllocationFailed"]
    assert (operation.status, operation.error) == ("Failed", error)


async def test_a_failed_pool_bills_and_holds_its_name_until_deleted(arm):
    """P5.18: the name is blocked until deleted."""
    arm.script(pools=[{"pool": "*", "state": "Failed"}])
    await arm.put("ws1")
    await arm.clock.advance(4)
    assert (await arm.put("ws1", headers={"if-none-match": "*"})).status == 412
    assert arm.ledger.live == 1
    await arm.delete("ws1")
    await arm.clock.advance(2)
    assert arm.ledger.live == 0
    assert (await arm.put("ws1", headers={"if-none-match": "*"})).status == 201


async def test_a_stuck_pool_stays_creating_until_it_is_aborted_or_deleted(arm):
    """P5.20: stuck Creating."""
    arm.script(pools=[{"pool": "*", "state": "Stuck"}])
    await arm.put("ws1")
    await arm.clock.advance(3600)
    assert await arm.state("ws1") == "Creating"
    await arm.abort("ws1")
    await arm.clock.advance(1)
    assert await arm.state("ws1") == "Canceled"


async def test_a_fate_told_later_does_not_reach_a_pool_that_was_accepted(arm):
    await arm.put("ws1")
    arm.script(pools=[{"pool": "*", "state": "Failed"}])
    await arm.clock.advance(4)
    assert await arm.state("ws1") == "Succeeded"


# Quota and limits -------------------------------------------------------------------------------


async def test_a_put_over_quota_is_refused_and_makes_nothing(arm):
    """P5.19, P6.4: 400, the cause nested, the numbers in the text; no pool, no VM."""
    arm.script(quota={"standardNCSv3Family": 11})
    await arm.put("ws1")
    said = await arm.put("ws2")
    assert (said.status, said.code) == (400, "OperationNotAllowed")
    assert [cause["code"] for cause in said.body["details"]] == ["QuotaExceeded"]
    assert "exceeding approved standardNCSv3Family Cores quota" in said.message
    assert "Location: eastus" in said.message
    assert "Current Limit: 11, Current Usage: 6, Additional Required: 6" in said.message
    assert (await arm.list(), arm.ledger.live) == (["ws1"], 1)


async def test_quota_is_free_again_when_the_pool_is_gone_and_not_before(arm):
    """P7.9: counted in vCPUs per family, until the pool is gone."""
    arm.script(quota={"STANDARDNCSV3FAMILY": 6})
    await arm.made("ws1")
    await arm.delete("ws1")
    assert (await arm.put("ws2")).status == 400
    await arm.clock.advance(2)
    assert (await arm.put("ws2")).status == 201


async def test_families_without_an_entry_have_no_limit(arm):
    arm.script(quota={"standardNCSv3Family": 0})
    t4 = pool_body(vmSize="Standard_NC4as_T4_v3")
    assert (await arm.put("ws1", body=t4)).status == 201


async def test_the_region_has_a_quota_of_its_own(arm):
    """P7.9: per region, ``cores``; P6.2: its text."""
    arm.script(quota={"cores": 6})
    await arm.put("ws1", body=pool_body(vmSize="Standard_NC4as_T4_v3"))
    said = await arm.put("ws2")
    assert "exceeding approved Total Regional Cores quota" in said.message


async def test_spot_machines_count_against_their_own_quota_only(arm):
    """P7.9: spot in lowPriorityCores."""
    arm.script(quota={"lowPriorityCores": 6, "standardNCSv3Family": 0})
    spot = pool_body(scaleSetPriority="Spot")
    assert (await arm.put("ws1", body=spot)).status == 201
    said = await arm.put("ws2", body=spot)
    assert "exceeding approved LowPriorityCores quota" in said.message
    assert (await arm.put("ws3")).status == 400


async def test_the_cluster_takes_so_many_pools_and_no_more(arm):
    """P9.7: the pool limit."""
    arm.script(pool_limit=1)
    await arm.put("ws1")
    said = await arm.put("ws2")
    assert said.status == 400
    assert "Maximum allowed: 1, Current in use: 1, Additional requested: 1" in said.message


async def test_a_pool_grows_within_its_quota(arm):
    arm.script(quota={"standardNCSv3Family": 12})
    await arm.made("ws1")
    assert (await arm.put("ws1", body=pool_body(count=3))).status == 400
    assert (await arm.put("ws1", body=pool_body(count=2))).status == 200
    assert arm.ledger.live == 2


async def test_the_vm_size_of_a_pool_cannot_change(arm):
    """P4.7, P6.2: PropertyChangeNotAllowed."""
    await arm.made("ws1")
    said = await arm.put("ws1", body=pool_body(vmSize="Standard_NC12s_v3"))
    assert (said.status, said.code) == (400, "PropertyChangeNotAllowed")


# LIST -------------------------------------------------------------------------------------------


async def test_a_stale_list_shows_what_was(arm):
    """P5.20: stale LIST; GET stays true."""
    await arm.made("ws1")
    await arm.clock.advance(30)
    arm.script(stale_list=30)
    await arm.put("ws2")
    await arm.delete("ws1")
    await arm.clock.advance(10)
    assert await arm.list() == ["ws1"]
    assert await arm.state("ws1") is None
    await arm.clock.advance(30)
    assert await arm.list() == ["ws2"]


async def test_the_past_of_a_pool_is_forgotten_in_time(arm):
    arm.script(latency={"create": 1}, stale_list=5)
    for _ in range(3):
        await arm.made("ws1") if await arm.state("ws1") is None else await arm.put("ws1")
        await arm.clock.advance(1000)
    assert await arm.list() == ["ws1"]


# The ledger -------------------------------------------------------------------------------------


async def test_a_vm_lives_from_the_accepted_put_until_the_pool_is_gone(arm):
    """P5.20, design.md §9: the ledger."""
    await arm.put("ws1")
    await arm.clock.advance(10)
    await arm.delete("ws1")
    await arm.clock.advance(100)
    (vm,) = arm.ledger.as_json()["vms"]
    assert (vm["pool"], vm["vm_size"]) == ("ws1", "Standard_NC6s_v3")
    assert vm["billed_seconds"] == 12.0


async def test_the_same_calls_at_the_same_times_give_the_same_answers():
    async def story() -> list[object]:
        arm = FakeArm()
        said = [await arm.put("ws1"), await arm.get("ws1"), await arm.delete("ws1")]
        return [(answer.body, answer.headers) for answer in said]

    assert await story() == await story()
