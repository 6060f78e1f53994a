"""ARM as it is spoken: routes, headers, bodies, errors, faults (facts §5.1, §5.2)."""

from __future__ import annotations

import asyncio

import pytest

from kaito.sandbox.answers import Answer, Cut, Refused, scripted_fault
from tests.fakes.arm import CLUSTER, POOLS, FakeArm, pool_body
from tests.fakes.clock import settle


@pytest.fixture
def arm() -> FakeArm:
    return FakeArm()


# P5.1 routes ------------------------------------------------------------------------------------


async def test_keywords_and_names_of_a_path_match_in_any_case(arm):
    """§5.1: path keywords and group and cluster names, case-insensitively."""
    path = (
        "/SUBSCRIPTIONS/S/resourcegroups/RG/PROVIDERS/microsoft.containerservice"
        "/managedclusters/C/agentpools/ws1"
    )
    assert (await arm.call("PUT", path, body=pool_body())).status == 201
    assert (await arm.call("GET", path)).status == 200


async def test_a_new_pool_answers_with_its_operation_and_etag(arm):
    """P5.1 a."""
    said = await arm.put("ws1")
    url = said.headers["Azure-AsyncOperation"]
    assert url.startswith("http://arm:1/subscriptions/s/providers/Microsoft.ContainerService")
    assert said.headers["ETag"] == said.body["properties"]["eTag"]


async def test_get_and_list_show_the_same_pool(arm):
    """P5.1 b and c."""
    await arm.put("ws1")
    one, all_of_them = await arm.get("ws1"), await arm.call("GET", POOLS)
    assert one.headers["ETag"] == one.body["properties"]["eTag"]
    assert all_of_them.body == {"value": [one.body]}


async def test_an_empty_pool_name_reads_the_collection(arm):
    """P5.27: a GET of …/agentPools/ is a LIST."""
    assert (await arm.call("GET", f"{POOLS}/")).body == {"value": []}


async def test_a_deletion_answers_with_where_to_look(arm):
    """P5.1 d: 202, empty, three headers."""
    await arm.made("ws1")
    said = await arm.delete("ws1", query={"ignore-pod-disruption-budget": "true"})
    assert (said.status, said.body) == (202, None)
    assert {"Azure-AsyncOperation", "Location", "Retry-After"} <= set(said.headers)


async def test_an_abort_answers_as_a_deletion_does(arm):
    """P5.1 e."""
    await arm.put("ws1")
    said = await arm.abort("ws1")
    assert (said.status, said.body) == (202, None)
    assert {"Azure-AsyncOperation", "Location", "Retry-After"} <= set(said.headers)


async def test_the_cluster_tells_its_state_region_and_node_group(arm):
    """P5.1 f, P5.8."""
    await arm.made("ws1")
    arm.script(cluster={"power_state": "Stopped", "provisioning_state": "Updating"})
    said = await arm.call("GET", CLUSTER)
    properties = said.body["properties"]
    assert (said.body["location"], said.body["name"]) == ("eastus", "c")
    assert said.body["type"] == "Microsoft.ContainerService/ManagedClusters"
    assert properties["nodeResourceGroup"] == "MC_rg_c_eastus"
    assert properties["powerState"] == {"code": "Stopped"}
    assert properties["provisioningState"] == "Updating"
    assert properties["currentKubernetesVersion"] == "1.34.1"
    assert [p["name"] for p in properties["agentPoolProfiles"]] == ["ws1"]


async def test_an_operation_is_in_progress_then_over(arm):
    """P5.1 g, P5.9: 200 either way, Retry-After while it runs, endTime only when over."""
    path = (await arm.put("ws1")).headers["Azure-AsyncOperation"].removeprefix("http://arm:1")
    path = path.partition("?")[0]
    running = await arm.call("GET", path, api="2017-08-31")
    assert (running.status, running.body["status"]) == (200, "InProgress")
    assert running.body["startTime"] == "2027-01-15T08:00:00.000Z"
    assert "Retry-After" in running.headers
    assert "endTime" not in running.body
    await arm.clock.advance(4)
    over = await arm.call("GET", path, api="2016-03-30")
    assert (over.body["status"], over.body["endTime"]) == ("Succeeded", "2027-01-15T08:00:04.000Z")
    assert over.body["name"] == path.rpartition("/")[2]
    assert "Retry-After" not in over.headers


async def test_a_failed_operation_answers_200_with_its_error(arm):
    """P5.9: HTTP 200 also for Failed."""
    arm.script(pools=[{"state": "Failed", "code": "SkuNotAvailable", "message": "not here"}])
    path = (await arm.put("ws1")).headers["Azure-AsyncOperation"].removeprefix("http://arm:1")
    await arm.clock.advance(4)
    said = await arm.call("GET", path.partition("?")[0])
    assert (said.status, said.body["status"]) == (200, "Failed")
    assert said.body["error"]["details"] == [{"code": "SkuNotAvailable", "message": "not here"}]


async def test_an_operation_result_is_202_until_it_is_204(arm):
    """P5.1 h."""
    await arm.made("ws1")
    path = (await arm.delete("ws1")).headers["Location"].removeprefix("http://arm:1")
    path = path.partition("?")[0]
    assert (await arm.call("GET", path)).status == 202
    await arm.clock.advance(2)
    assert (await arm.call("GET", path)).status == 204


async def test_an_unknown_operation_is_not_found(arm):
    said = await arm.call(
        "GET", "/subscriptions/s/providers/Microsoft.ContainerService/locations/eastus/operations/x"
    )
    assert said.status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PATCH", f"{POOLS}/ws1", 405, "HttpMethodNotAllowed"),
        ("PUT", POOLS, 405, "HttpMethodNotAllowed"),
        ("GET", f"{POOLS}/ws1/abort", 405, "HttpMethodNotAllowed"),
        ("GET", f"{CLUSTER}/extensions", 404, "InvalidResourceType"),
        ("GET", f"{POOLS}/ws1/machines", 404, "InvalidResourceType"),
        ("GET", "/", 404, "InvalidResourceType"),
    ],
)
async def test_what_is_not_served_is_refused(arm, method, path, status, code):
    said = await arm.call(method, path)
    assert (said.status, said.code) == (status, code)


# P5.2 to P5.4 -----------------------------------------------------------------------------------


async def test_every_answer_has_the_headers_of_arm(arm):
    """P5.2: ids, the client's echoed; what is left of reads, writes and deletes."""
    ids = {"x-ms-client-request-id": "mine", "x-ms-correlation-request-id": "run"}
    for method, kind in (("GET", "reads"), ("PUT", "writes"), ("DELETE", "deletes")):
        said = await arm.call(method, f"{POOLS}/ws1", body=pool_body(), headers=ids)
        assert said.headers["x-ms-client-request-id"] == "mine"
        assert said.headers["x-ms-correlation-request-id"] == "run"
        assert said.headers["x-ms-request-id"]
        assert int(said.headers[f"x-ms-ratelimit-remaining-subscription-{kind}"]) > 0
    said = await arm.call("GET", "/nothing")
    assert said.headers["x-ms-correlation-request-id"] == said.headers["x-ms-request-id"]


@pytest.mark.parametrize(
    ("api", "status", "code"),
    [
        (None, 400, "MissingApiVersionParameter"),
        ("v1", 400, "InvalidApiVersionParameter"),
        ("2023-13-01", 400, "InvalidApiVersionParameter"),
        ("2023-06-30", 400, "InvalidApiVersionParameter"),
        ("2023-07-01", 404, "NotFound"),
        ("2024-01-01", 404, "NotFound"),
        ("2025-05-02-preview", 404, "NotFound"),
        ("2026-08-01", 404, "NotFound"),
    ],
)
async def test_every_api_version_since_2023_07_is_served(arm, api, status, code):
    """P5.3."""
    said = await arm.get("ws1", api=api)
    assert (said.status, said.code) == (status, code)


async def test_a_token_is_wanted_only_when_told_to():
    """P5.4."""
    arm = FakeArm(require_authorization=True)
    said = await arm.get("ws1")
    assert (said.status, said.code) == (401, "AuthenticationFailed")
    assert "WWW-Authenticate" in said.headers
    assert (await arm.get("ws1", headers={"authorization": "Bearer x"})).status == 404


# P5.5, P5.7, P5.10 ------------------------------------------------------------------------------


async def test_a_pool_is_what_was_sent_with_defaults_and_read_only_fields(arm):
    """P5.5."""
    said = await arm.put("ws1", body=pool_body(tags={"team": "a"}, provisioningState="Succeeded"))
    assert said.body["id"] == (
        "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ContainerService"
        "/managedClusters/c/agentPools/ws1"
    )
    assert said.body["name"] == "ws1"
    assert said.body["type"] == "Microsoft.ContainerService/managedClusters/agentPools"
    properties = dict(said.body["properties"])
    assert properties.pop("eTag").startswith('"')
    assert properties == {
        "count": 1,
        "vmSize": "Standard_NC6s_v3",
        "osDiskSizeGB": 128,
        "osDiskType": "Managed",
        "maxPods": 110,
        "type": "VirtualMachineScaleSets",
        "provisioningState": "Creating",
        "powerState": {"code": "Running"},
        "mode": "User",
        "orchestratorVersion": "1.34",
        "currentOrchestratorVersion": "1.34.1",
        "enableAutoScaling": False,
        "osType": "Linux",
        "osSKU": "Ubuntu",
        "nodeImageVersion": "AKSUbuntu-2204gen2containerd-202601.13.0",
        "nodeLabels": {"kaito.sh/workspace": "phi"},
        "nodeTaints": ["sku=gpu:NoSchedule"],
        "tags": {"team": "a"},
        "status": {"provisioningError": None},
    }


async def test_a_list_is_paged_on_the_request_s_own_host(arm):
    """P5.7: nextLink absolute, with $skipToken; the last page has none."""
    for name in ("a", "b", "c"):
        await arm.put(name)
    arm.script(page_size=2)
    first = await arm.call("GET", POOLS)
    assert [pool["name"] for pool in first.body["value"]] == ["a", "b"]
    assert first.body["nextLink"] == f"http://arm:1{POOLS}?api-version=2026-08-01&$skipToken=b"
    last = await arm.call("GET", POOLS, query={"$skipToken": "b"})
    assert [pool["name"] for pool in last.body["value"]] == ["c"]
    assert "nextLink" not in last.body


async def test_the_front_door_wraps_its_errors_and_aks_does_not(arm):
    """P5.10: two shapes."""
    assert (await arm.get("ws1")).body == {
        "code": "NotFound",
        "details": None,
        "message": "Agent Pool ws1 not found",
        "subcode": "",
    }
    said = await arm.call("GET", POOLS.replace("/s/", "/other/", 1))
    assert set(said.body) == {"error"}
    wrapped = Refused(400, "InvalidRequestContent", "no", target="x", details=({"code": "y"},))
    assert b'"target":"x","details":[{"code":"y"}]' in wrapped.answer().body


# P5.16 not-found levels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", f"{POOLS}/ws1", "NotFound"),
        ("GET", POOLS.replace("/c/", "/other/"), "ResourceNotFound"),
        ("PUT", POOLS.replace("/c/", "/other/") + "/ws1", "ParentResourceNotFound"),
        ("GET", POOLS.replace("/rg/", "/other/"), "ResourceGroupNotFound"),
        ("GET", POOLS.replace("/s/", "/other/", 1), "SubscriptionNotFound"),
    ],
)
async def test_not_found_says_what_was_not_found(arm, method, path, code):
    """P5.16: all 404; only the first says anything of a pool."""
    said = await arm.call(method, path)
    assert (said.status, said.code) == (404, code)


# Bodies that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body", "code", "target"),
    [
        ("Ws1", pool_body(), "InvalidAgentPoolName", "name"),
        ("ws12345678901", pool_body(), "InvalidAgentPoolName", "name"),
        ("ws1", b"{", "InvalidRequestContent", None),
        ("ws1", {}, "InvalidRequestContent", None),
        ("ws1", pool_body(vmSize=None), "InvalidParameter", "properties"),
        ("ws1", pool_body(count="1"), "InvalidParameter", "properties"),
        ("ws1", pool_body(count=1001), "InvalidParameter", "properties.count"),
        ("ws1", pool_body(vmSize="huge"), "VMSizeNotSupported", "properties.vmSize"),
        ("ws1", pool_body(osDiskSizeGB=-2147483648), "InvalidParameter", "properties.osDiskSizeGB"),
        ("ws1", pool_body(osDiskSizeGB=29), "InvalidParameter", "properties.osDiskSizeGB"),
        ("ws1", pool_body(osDiskSizeGB=2049), "InvalidParameter", "properties.osDiskSizeGB"),
        ("ws1", pool_body(nodeTaints=["sku"]), "InvalidParameter", "properties.nodeTaints"),
        (
            "ws1",
            pool_body(nodeLabels={"kubernetes.azure.com/x": "y"}),
            "InvalidParameter",
            "properties.nodeLabels",
        ),
        ("ws1", pool_body(nodeLabels={"a b": "y"}), "InvalidParameter", "properties.nodeLabels"),
        ("ws1", pool_body(nodeLabels={"A/b": "y"}), "InvalidParameter", "properties.nodeLabels"),
        ("ws1", pool_body(nodeLabels={"a": "-"}), "InvalidParameter", "properties.nodeLabels"),
    ],
)
async def test_a_request_that_is_not_well_formed_is_refused(arm, name, body, code, target):
    """P4.1, P4.6, P2.2: names, disk sizes, reserved labels."""
    said = await arm.put(name, body=body)
    assert (said.status, said.code) == (400, code)
    assert said.body.get("error", said.body).get("target") == target
    assert await arm.list() == []


@pytest.mark.parametrize(("asked", "given"), [(0, 128), (None, 128), (30, 30), (2048, 2048)])
async def test_no_disk_size_means_the_default_of_the_vm_size(arm, asked, given):
    """P4.6."""
    said = await arm.put("ws1", body=pool_body(osDiskSizeGB=asked))
    assert said.body["properties"]["osDiskSizeGB"] == given


# P5.17, P9.5, P9.6 throttling -------------------------------------------------------------------


async def test_puts_of_one_pool_draw_on_its_own_bucket():
    """P9.5: 20, refill 1/min, per agent pool. P5.17: Throttled with Retry-After."""
    arm = FakeArm(throttling=True)
    for _ in range(20):
        assert (await arm.put("ws1")).status != 429
    said = await arm.put("ws1")
    assert (said.status, said.code, said.headers["Retry-After"]) == (429, "Throttled", "60")
    assert (await arm.put("ws2")).status == 201
    await arm.clock.advance(60)
    assert (await arm.put("ws1")).status != 429


async def test_all_other_calls_share_a_bucket():
    """P9.5: 60, refill 1/s."""
    arm = FakeArm(throttling=True)
    for _ in range(60):
        assert (await arm.get("ws1")).status == 404
    said = await arm.call("GET", POOLS)
    assert (said.status, said.code, said.headers["Retry-After"]) == (429, "Throttled", "1")
    await arm.clock.advance(1)
    assert (await arm.call("GET", POOLS)).status == 200


async def test_the_front_door_has_a_bucket_before_that():
    """P9.6: deletes 200, refill 10/s. P5.17: TooManyRequests."""
    arm = FakeArm(throttling=True)
    for _ in range(200):
        await arm.delete("ws1")
    said = await arm.delete("ws1")
    assert (said.status, said.code) == (429, "TooManyRequests")


async def test_no_bucket_refuses_unless_told_to(arm):
    for _ in range(300):
        assert (await arm.get("ws1")).status == 404


# Faults by script -------------------------------------------------------------------------------


async def test_a_rule_answers_in_place_of_the_cloud(arm):
    """P5.20: failure on the n-th call by route and name."""
    arm.script(
        rules=[{"operation": "put", "pool": "ws*", "times": 1, "status": 429, "retry_after": 7}]
    )
    said = await arm.put("ws1")
    assert (said.status, said.code, said.headers["Retry-After"]) == (429, "TooManyRequests", "7")
    assert await arm.list() == []
    assert (await arm.put("ws1")).status == 201


async def test_a_rule_that_applies_does_the_work_and_loses_the_answer(arm):
    """P5.20, R19: cut after the effect."""
    arm.script(rules=[{"operation": "put", "times": 1, "apply": True, "status": 500}])
    assert (await arm.put("ws1")).status == 500
    assert await arm.list() == ["ws1"]


@pytest.mark.parametrize("apply", [True, False])
async def test_a_dropped_call_is_cut_before_or_after_its_effect(arm, apply):
    """P5.20: cut before or after the effect."""
    arm.script(rules=[{"operation": "put", "drop": True, "apply": apply}])
    assert await arm.reply("PUT", f"{POOLS}/ws1", body=pool_body()) == Cut()
    assert await arm.list() == (["ws1"] if apply else [])


@pytest.mark.parametrize(("hang", "seconds"), [(90, 90), (True, 3600)])
async def test_a_call_that_hangs_does_not_answer_in_time(arm, hang, seconds):
    """P5.20: delay past the timeout."""
    arm.script(rules=[{"operation": "get", "hang": hang}])
    async with asyncio.TaskGroup() as group:
        call = group.create_task(arm.reply("GET", f"{POOLS}/ws1"))
        await arm.clock.advance(seconds - 1)
        assert not call.done()
        await arm.clock.advance(1)
    assert call.result() == Cut()


async def test_a_call_that_hangs_may_answer_in_the_end(arm):
    arm.script(rules=[{"operation": "get", "hang": 5, "status": 503}])
    async with asyncio.TaskGroup() as group:
        call = group.create_task(arm.reply("GET", f"{POOLS}/ws1"))
        await arm.clock.advance(5)
    answer = call.result()
    assert isinstance(answer, Answer)
    assert answer.status == 503


async def test_every_call_takes_the_latency_of_calls(arm):
    """P5.20: latency of a call; the effect comes after it."""
    arm.script(latency={"call": 3})
    async with asyncio.TaskGroup() as group:
        call = group.create_task(arm.put("ws1"))
        await settle()
        assert arm.ledger.live == 0
        await arm.clock.advance(3)
    assert call.result().status == 201


@pytest.mark.parametrize(
    ("status", "code", "body", "content_type"),
    [
        (503, None, b"<p>down</p>", "text/html"),
        (200, None, b"<p>down</p>", "application/json; charset=utf-8"),
    ],
)
def test_without_a_code_the_body_is_raw(status, code, body, content_type):
    """P5.10: 500, 502, 503 may have HTML. P5.33: a success with broken JSON."""
    answer = scripted_fault(status, code, "<p>down</p>", None)
    assert (answer.body, answer.content_type) == (body, content_type)


async def test_a_rule_without_any_answer_is_a_server_error(arm):
    arm.script(rules=[{"operation": "list"}])
    assert (await arm.call("GET", POOLS)).status == 500


async def test_calls_are_counted_whatever_they_are_answered(arm):
    """design.md §9: calls of the ledger; the cluster and operations are none of them."""
    arm.script(rules=[{"operation": "put", "drop": True}])
    await arm.reply("PUT", f"{POOLS}/ws1", body=pool_body())
    for said in (arm.get("ws1"), arm.delete("ws1"), arm.abort("ws1"), arm.call("GET", CLUSTER)):
        await said
    await arm.list()
    assert arm.ledger.calls == {"put": 1, "get": 1, "list": 1, "delete": 1, "abort": 1}
