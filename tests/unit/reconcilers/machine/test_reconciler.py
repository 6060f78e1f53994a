"""The shell for one claim, against an API server and a cloud in memory."""

import asyncio
import contextlib
import itertools

import pytest

from kaito.errors import InvalidRequest, KaitoError, TransportError
from kaito.metrics import CLAIMS, LAUNCH_FAILURES
from kaito.provisioner.interface import Fault
from kaito.reconcilers.kinds import MACHINES, PODS
from kaito.reconcilers.machine.state import MachineSettings
from tests.fakes.backend import refusal
from tests.unit.reconcilers.machine.builders import NAME, manifest
from tests.unit.reconcilers.machine.stage import KEY, Fuse, Process, Stage


async def test_a_claim_becomes_a_ready_node_and_tells_the_story():
    """P3.7, P9.3, P1.10."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    assert stage.claim is not None
    status = stage.claim["status"]
    assert status["nodeName"] == f"aks-{NAME}-vmss000000"
    assert status["providerID"] == f"azure:///{NAME}/0"
    assert status["allocatable"]["nvidia.com/gpu"] == "1"
    assert [c["type"] for c in status["conditions"]] == [
        "MachineInitialized",
        "MachineLaunched",
        "MachineRegistered",
        "Ready",
    ]
    assert stage.recorder.reasons == ["Launching", "Launched", "Registered", "Initialized"]
    assert (stage.backend.calls["put"], stage.backend.created) == (1, 1)


async def test_node_name_is_never_later_than_ready():
    """P1.10: Kaito reads it right after."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    patches = [
        c.body["status"]
        for c in stage.kube.calls
        if c.options.get("subresource") == "status" and c.kind == MACHINES.resource
    ]
    named = next(i for i, status in enumerate(patches) if "nodeName" in status)
    ready = next(
        i
        for i, status in enumerate(patches)
        if any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
    )
    assert named <= ready


async def test_deletion_drains_gives_back_the_machine_and_leaves_nothing():
    """P3.13."""
    stage = Stage(join_seconds=40)
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    assert stage.recorder.reasons[4:] == ["Draining", "Terminating", "Terminated"]
    assert stage.kube.bodies(PODS) == []
    assert stage.backend.calls["delete"] == 1
    writes = [c for c in stage.kube.writes() if not c.options.get("subresource")]
    calls = [f"{c.method} {c.kind}" for c in writes]
    assert calls[-2:] == ["json_patch nodes", f"json_patch {MACHINES.resource}"]


async def test_a_node_that_joins_after_the_pool_is_created_is_found_too():
    """P7.1: both orders happen."""
    stage = Stage(join_seconds=60)
    stage.ask()
    await stage.until(stage.is_ready)


async def test_a_ready_claim_is_left_in_peace():
    """P2.5, G16: no write for nothing."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    writes = len(stage.kube.writes())
    for _ in range(5):
        result = await stage.tick(60)
    assert len(stage.kube.writes()) == writes
    assert result.requeue_after is None


async def test_ready_follows_the_node():
    """U33."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    stage.set_node_ready("Unknown")
    await stage.tick()
    assert stage.condition("Ready")["reason"] == "NodeNotReady"
    assert stage.condition("MachineInitialized")["status"] == "True"
    stage.set_node_ready("True")
    await stage.tick()
    assert stage.is_ready()
    assert stage.recorder.reasons[-1] == "NodeNotReady"
    assert stage.backend.created == 1


async def test_a_claim_that_is_not_ours_is_never_touched():
    """P1.21."""
    stage = Stage()
    body = manifest()
    body["metadata"]["labels"] = {"karpenter.sh/provisioner-name": "theirs"}
    stage.ask(**body)
    for _ in range(3):
        await stage.tick()
    assert stage.kube.writes() == []
    assert stage.recorder.events == []
    assert stage.backend.calls["put"] == 0


async def test_a_claim_deleted_before_its_launch_costs_one_deletion_that_finds_nothing():
    """G8, W6: our finalizer alone does not tell it from one whose PUT a crash cut off."""
    stage = Stage()
    body = manifest(finalizers=["karpenter.sh/termination"])
    stage.ask(**body)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    assert stage.backend.calls["delete"] == 1


async def test_a_claim_deleted_while_its_machine_is_created_aborts_and_deletes():
    """W14."""
    stage = Stage()
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    assert "Aborting" in stage.recorder.reasons
    assert stage.backend.calls["abort"] == 1
    assert stage.backend.peak == 1


async def test_a_claim_under_the_name_of_one_that_left_a_machine_waits_for_its_end():
    """P2.4, G6."""
    stage = Stage()
    stage.backend.add_leftover(NAME, "uid-of-old")
    stage.ask()
    await stage.until(stage.is_ready)
    assert (stage.backend.calls["delete"], stage.backend.peak) == (1, 1)


async def test_a_strangers_pool_is_never_changed():
    """P2.4."""
    stage = Stage()
    stage.backend.add_foreign(NAME)
    stage.ask()
    for _ in range(3):
        await stage.tick()
    assert stage.condition("LaunchDiagnosis")["reason"] == "NameTaken"
    assert stage.backend.calls["put"] == stage.backend.calls["delete"] == 0


async def test_no_quota_is_told_at_once_tried_at_its_times_and_heals_by_itself():
    """G11, P6.3: within one reconcile of the answer; spaced, counted, nothing leaked."""
    stage = Stage()
    stage.backend.refuse = lambda _: refusal("QuotaExceeded")
    before = LAUNCH_FAILURES.labels("QuotaExceeded")._value.get()
    stage.ask()
    await stage.tick()
    assert stage.condition("MachineLaunched")["reason"] == "LaunchFailed"
    diagnosis = stage.condition("LaunchDiagnosis")
    assert diagnosis["reason"] == "QuotaExceeded"
    assert "Attempt 1" in diagnosis["message"]
    assert stage.condition("Ready")["reason"] == "LaunchFailed"
    tries = []
    for _ in range(1200):
        calls = stage.backend.calls["put"]
        await stage.tick(10)
        if stage.backend.calls["put"] > calls:
            tries.append(stage.clock.monotonic())
    gaps = [round(b - a) for a, b in itertools.pairwise(tries)]
    assert gaps[:3] == [1200, 2400, 3600]
    assert f"Attempt {len(tries) + 1}" in stage.condition("LaunchDiagnosis")["message"]
    assert stage.backend.created == 0
    assert LAUNCH_FAILURES.labels("QuotaExceeded")._value.get() - before == len(tries) + 1
    stage.backend.refuse = lambda _: None
    await stage.until(stage.is_ready, ticks=800)
    assert stage.condition("LaunchDiagnosis") == {}
    assert stage.claim is not None
    assert "annotations" not in stage.claim["metadata"]
    assert stage.backend.created == 1


async def test_an_hour_without_capacity_costs_little():
    """P6.3: at most 30 calls and 30 writes."""
    stage = Stage()
    stage.backend.refuse = lambda _: refusal("QuotaExceeded")
    stage.ask()
    for _ in range(360):
        await stage.tick(10)
    assert stage.backend.calls["put"] <= 5
    assert len(stage.kube.writes()) <= 15


async def test_the_gate_holds_after_a_restart():
    """G11."""
    stage = Stage()
    stage.backend.refuse = lambda _: refusal("QuotaExceeded")
    stage.ask()
    await stage.tick()
    for _ in range(10):
        stage.restart()
        result = await stage.tick()
    assert stage.backend.calls["put"] == 1
    assert result.requeue_after is not None
    assert 500 < result.requeue_after < 600


async def test_the_setting_caps_the_waits():
    """P6.3: --launch-retry-max."""
    stage = Stage()
    stage.settings = MachineSettings(launch_retry_max=3)
    stage.restart()
    stage.backend.refuse = lambda _: refusal("QuotaExceeded")
    stage.ask()
    result = await stage.tick()
    assert result.requeue_after == 3


async def test_a_failed_pool_is_deleted_seen_gone_and_replaced():
    """W13, P6.3."""
    stage = Stage(join_seconds=60)
    fault = Fault("CapacityUnavailable", "none", "Wait", "AllocationFailed", waits=(60.0, 120.0))
    stage.backend.faults[NAME] = fault
    stage.ask()
    await stage.until(lambda: "LaunchFailed" in stage.recorder.reasons)
    await stage.until(stage.is_ready)
    assert (stage.backend.created, stage.backend.peak) == (2, 1)
    assert stage.backend.calls["put"] == stage.backend.calls["delete"] + 1 == 2


@pytest.mark.parametrize("operation", ["put", "delete"])
async def test_an_answer_that_is_lost_costs_no_second_machine(operation: str):
    """P5.36."""
    stage = Stage()
    stage.backend.lose_answers = {operation}
    stage.ask()
    await stage.until(stage.is_ready)
    assert stage.backend.created == 1
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    assert stage.backend.peak == 1


async def test_a_lost_put_is_not_repeated_blindly():
    """P5.36: the list that follows shows the pool."""
    stage = Stage()
    stage.backend.lose_answers = {"put"}
    stage.ask()
    await stage.until(stage.is_ready)
    assert stage.backend.calls["put"] == 1


async def test_two_reconcilers_at_once_order_one_machine():
    """W26, G6: writes are safe to overlap."""
    stage = Stage()
    stage.ask()
    first, second = Process(stage), Process(stage)
    for _ in range(30):
        await stage.clock.advance(5)
        await stage._as_the_world(stage._vms())
        for process in (first, second):
            await process.inventory._list()
        async with asyncio.TaskGroup() as group:
            for process in (first, second):
                group.create_task(_tolerant(process))
    assert stage.is_ready()
    assert (stage.backend.created, stage.backend.peak) == (1, 1)
    await stage.ask_no_more()
    for _ in range(30):
        await stage.clock.advance(5)
        await stage._as_the_world(stage._vms())
        for process in (first, second):
            await process.inventory._list()
        async with asyncio.TaskGroup() as group:
            for process in (first, second):
                group.create_task(_tolerant(process))
    assert stage.is_gone()
    assert stage.backend.peak == 1


async def _tolerant(process: Process) -> None:
    with contextlib.suppress(KaitoError):  # the worker would come back
        await process.reconciler.reconcile(KEY)


async def _whole_life(stage: Stage) -> None:
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)


@pytest.mark.parametrize("nodes_go", [True, False], ids=["node goes", "node stays"])
async def test_a_crash_at_any_call_leads_to_the_same_end(nodes_go: bool):
    """W3, P3.13: each call of a whole life, cut before it was sent and after it was run."""
    clean = Stage(nodes_go=nodes_go)
    await _whole_life(clean)
    calls = clean.fuse.seen
    assert {"cloud launch", "cloud abort", "cloud terminate"} <= set(calls)
    assert (f"delete nodes aks-{NAME}-vmss000000" in calls) is not nodes_go
    for at in range(1, len(calls) + 1):
        for after in (False, True):
            stage = Stage(fuse=Fuse(at, after), nodes_go=nodes_go)
            try:
                await _whole_life(stage)
            except AssertionError as err:
                raise AssertionError(
                    f"crash {'after' if after else 'before'} {calls[at - 1]}"
                ) from err
            assert (stage.backend.created, stage.backend.peak) == (1, 1), calls[at - 1]


async def test_a_crash_during_a_refusal_keeps_the_cause():
    """G11: between the annotation and the status, the annotation tells."""
    for at in range(1, 16):
        stage = Stage(fuse=Fuse(at, after=True))
        stage.backend.refuse = lambda _: refusal("QuotaExceeded")
        stage.ask()
        await stage.until(lambda s=stage: bool(s.condition("LaunchDiagnosis")))
        assert stage.backend.calls["put"] <= 2


async def test_a_failed_write_is_the_results_failure_and_made_up_for():
    """G12, G15."""
    stage = Stage()
    stage.ask()
    stage.kube.fail("merge_patch", MACHINES, TransportError("cut"), times=1)
    result = await stage.tick()
    assert isinstance(result.failure, TransportError)
    await stage.until(stage.is_ready)
    assert stage.backend.created == 1


async def test_a_status_write_that_is_refused_for_good_stops_nothing():
    """G15: the wish for the next pass survives it; once the claim then never got its VM."""
    stage = Stage()
    stage.ask()
    stage.kube.fail("merge_patch", MACHINES, InvalidRequest("422", status=422), times=2)
    stage.kube.calls.clear()
    for _ in range(3):
        await stage.tick()
    assert stage.backend.created == 1


async def test_a_claim_without_readable_spec_says_so_and_can_still_be_deleted():
    """Design §6: what does not decode is reported as a condition."""
    stage = Stage()
    stage.ask(spec={"requirements": "nonsense"})
    await stage.tick()
    ready = stage.condition("Ready")
    assert ready["reason"] == "Undecodable"
    assert "requirements" in ready["message"]


async def test_claims_are_counted_by_phase():
    """P9.2."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    assert CLAIMS.labels("ready")._value.get() == 1
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    await stage.tick()
    assert CLAIMS.labels("ready")._value.get() == 0
    assert CLAIMS.labels("terminate")._value.get() == 0


async def test_an_unreachable_cloud_is_told_on_the_claim():
    """W25."""
    stage = Stage()
    stage.backend.list_failure = refusal("CredentialInvalid", waits=(60.0,))
    stage.ask()
    await stage.tick()
    assert "CredentialInvalid" in stage.condition("MachineLaunched")["message"]
    assert stage.backend.calls["put"] == 0
    stage.backend.list_failure = None
    await stage.until(stage.is_ready)
