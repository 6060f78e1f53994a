"""The whole shell on a cluster in memory: converging, crashing, with caches that are behind."""

from __future__ import annotations

import pytest

from kaito.errors import Backoff, Conflict, Forbidden, NameTaken, ServerUnavailable
from kaito.reconcilers import kinds
from kaito.reconcilers.workspace.naming import claim_name
from tests.fakes.clock import FakeClock
from tests.unit.reconcilers.workspace.builders import UID
from tests.unit.reconcilers.workspace.cluster import Cluster, Crash, Recorder, reconciler

KEY = ("default", "phi")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def cluster(clock):
    made = Cluster(clock)
    made.add_workspace()
    return made


async def converge(cluster, *, passes=12, recorder=None, process=None):
    process = process or reconciler(cluster, recorder)
    for _ in range(passes):
        await process.reconcile(KEY)
        cluster.turn()
        await cluster.clock.advance(1)


def conditions(cluster):
    status = cluster.workspace().get("status", {})
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", ())}


async def test_a_workspace_converges_and_then_nothing_is_written(cluster, clock):
    """Zero writes once settled; the finalizer first (G16: its pass asks for the next)."""
    recorder = Recorder()
    first = await reconciler(cluster, recorder).reconcile(KEY)
    assert first.requeue_after is not None
    assert cluster.written() == [("merge_patch", "workspaces"), ("merge_patch", "workspaces")]
    assert [c.options["subresource"] for c in cluster.writes()] == ["", "status"]
    await converge(cluster, recorder=recorder)
    assert conditions(cluster)["WorkspaceReady"] == ("True", "WorkspaceReady")
    assert conditions(cluster)["InferenceReady"][0] == "True"
    assert cluster.names(kinds.DEPLOYMENTS) == cluster.names(kinds.SERVICES) == ["phi"]
    cluster.calls.clear()
    story = list(recorder.events)
    await converge(cluster, passes=3, recorder=recorder)
    assert cluster.written() == []
    assert recorder.events == story
    assert story == [
        ("Normal", "WaitingForNodes"),
        ("Normal", "workspaceResourceStatusSuccess"),
        ("Normal", "WorkspaceInferencePending"),
        ("Normal", "WorkspaceInferenceStatusSuccess"),
    ]


async def test_ten_minutes_of_ready_cost_one_write_and_then_none(cluster, clock):
    """G3: the count of asks goes back to 0."""
    await converge(cluster)
    result = await reconciler(cluster).reconcile(KEY)
    assert 500 < result.requeue_after <= 600
    cluster.calls.clear()
    await clock.advance(result.requeue_after)
    settled = await reconciler(cluster).reconcile(KEY)
    assert cluster.written() == [("merge_patch", "workspaces")]
    assert "asks" not in cluster.workspace()["status"]["nodes"][0]
    assert settled.requeue_after is None
    assert (await reconciler(cluster).reconcile(KEY)).requeue_after is None
    assert len(cluster.writes()) == 1


@pytest.mark.parametrize("fatal", range(1, 10))
async def test_a_crash_after_any_write_ends_in_the_same_place_with_the_same_claims(fatal, clock):
    cluster = Cluster(clock)
    cluster.add_workspace(count=2)
    cluster.crash_after = fatal
    try:
        await converge(cluster)
        crashed = False
    except Crash:
        crashed = True
    assert crashed
    cluster.survive()
    await converge(cluster, passes=20)
    assert conditions(cluster)["WorkspaceReady"][0] == "True"
    wanted = sorted(claim_name(UID, i) for i in range(2))
    assert cluster.names(kinds.MACHINES) == wanted
    machines = sorted(m for m in cluster.made if m.startswith("Machine "))
    assert machines == [f"Machine {name}" for name in wanted]
    nodes = cluster.workspace()["status"]["nodes"]
    assert [n["asks"] for n in nodes] == [1, 1]


@pytest.mark.parametrize("fatal", range(1, 6))
async def test_a_crash_while_deleting_leaves_nothing_behind(fatal, cluster):
    await converge(cluster)
    cluster.delete_workspace()
    cluster.survive()
    cluster.crash_after = fatal
    try:
        await converge(cluster, passes=6)
    except Crash:
        cluster.survive()
        await converge(cluster, passes=6)
    assert cluster.is_empty


async def test_a_stale_cache_never_makes_a_second_claim(cluster, clock):
    """One name per slot: the API server itself admits one."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    cluster.freeze()
    await process.reconcile(KEY)
    for _ in range(5):
        result = await process.reconcile(KEY)
        assert isinstance(result.failure, Conflict)
        await clock.advance(30)
    assert cluster.made == [f"Machine {claim_name(UID, 0)}"]
    cluster.thaw()
    await converge(cluster)
    assert conditions(cluster)["WorkspaceReady"][0] == "True"


async def test_a_claim_that_someone_deletes_is_asked_for_again_after_its_wait(cluster, clock):
    """G3: same name, counted."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    await process.reconcile(KEY)
    cluster.remove(kinds.MACHINES, claim_name(UID, 0))
    result = await process.reconcile(KEY)
    assert cluster.names(kinds.MACHINES) == []
    assert 7 < result.requeue_after <= 12
    await clock.advance(result.requeue_after)
    await process.reconcile(KEY)
    assert cluster.names(kinds.MACHINES) == [claim_name(UID, 0)]
    assert cluster.workspace()["status"]["nodes"][0]["asks"] == 2


async def test_the_status_patch_carries_the_version_of_our_own_write_and_no_newer_one(cluster):
    """G12: a write by another between snapshot and report is a conflict, not a victim."""
    process = reconciler(cluster)
    assert (await process.reconcile(KEY)).failure is None
    cluster.freeze()
    cluster.edit(kinds.WORKSPACES, "phi", lambda o: o["metadata"].update(annotations={"a": "b"}))
    before = cluster.workspace()
    assert isinstance((await process.reconcile(KEY)).failure, Conflict)
    assert cluster.workspace() == before


async def test_one_refused_write_holds_no_other_and_the_least_patient_error_decides(cluster):
    """G15."""
    await converge(cluster)
    cluster.remove(kinds.DEPLOYMENTS, "phi")
    cluster.remove(kinds.SERVICES, "phi")
    cluster.fail("create", kinds.SERVICES, NameTaken("a stranger's"))
    cluster.fail("create", kinds.DEPLOYMENTS, ServerUnavailable("busy", status=503))
    cluster.calls.clear()
    result = await reconciler(cluster).reconcile(KEY)
    assert isinstance(result.failure, ServerUnavailable)
    assert [plural for _, plural in cluster.written()] == ["services", "deployments", "workspaces"]
    assert conditions(cluster)["InferenceReady"] == ("False", "WorkspaceInferenceStatusFailed")


async def test_a_wait_survives_a_failure(cluster, clock):
    """G15: the earlier of the two counts, and a refused pass asks for no immediate next one."""
    cluster.fail("create", kinds.MACHINES, Forbidden("no", status=403))
    process = reconciler(cluster)
    await process.reconcile(KEY)
    refused = await process.reconcile(KEY)
    assert refused.failure.retry == Backoff(at_least=1.0)
    assert refused.requeue_after is None
    await converge(cluster)
    cluster.edit(kinds.DEPLOYMENTS, "phi", lambda o: o["spec"].update(replicas=3))
    cluster.fail("apply", None, Forbidden("no", status=403))
    failed = await process.reconcile(KEY)
    assert failed.failure.retry == Backoff(at_least=1.0)
    assert 500 < failed.requeue_after <= 600


async def test_a_stranger_under_our_name_is_never_changed_and_is_told(cluster):
    """G13: AlreadyExists, one live read, NameTaken."""
    stranger = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "phi", "namespace": "default"},
        "spec": {"type": "ClusterIP"},
    }
    cluster.seed(kinds.SERVICES, stranger)
    process = reconciler(cluster)
    for _ in range(8):
        result = await process.reconcile(KEY)
        cluster.turn()
    assert isinstance(result.failure, NameTaken)
    assert cluster.body(kinds.SERVICES, *KEY)["spec"] == {"type": "ClusterIP"}
    assert conditions(cluster)["WorkspaceReady"][0] == "False"


async def test_a_deleted_service_comes_back_and_the_status_with_it(cluster):
    """G16: the echo of our own create wakes nobody, so the pass that made it looks again."""
    await converge(cluster)
    cluster.remove(kinds.SERVICES, "phi")
    result = await reconciler(cluster).reconcile(KEY)
    assert result.requeue_after < 1
    assert conditions(cluster)["WorkspaceReady"][0] == "False"
    await reconciler(cluster).reconcile(KEY)
    assert conditions(cluster)["WorkspaceReady"][0] == "True"


async def test_with_a_node_lost_drift_is_corrected_and_no_second_vm_is_asked_for(cluster):
    """G18, G1."""
    await converge(cluster)
    node = next(name for name in cluster.names(kinds.NODES))
    cluster.edit(kinds.NODES, node, lambda o: o["status"]["conditions"][0].update(status="Unknown"))
    cluster.edit(kinds.DEPLOYMENTS, "phi", lambda o: o["spec"].update(replicas=5))
    await reconciler(cluster).reconcile(KEY)
    assert cluster.body(kinds.DEPLOYMENTS, *KEY)["spec"]["replicas"] == 1
    assert conditions(cluster)["ResourceReady"] == ("False", "NodeNotReady")
    assert len(cluster.made) == 3


async def test_a_fault_makes_nothing_and_says_why(clock):
    cluster = Cluster(clock)
    cluster.add_workspace(preset="gpt-7")
    recorder = Recorder()
    await converge(cluster, passes=3, recorder=recorder)
    assert cluster.made == []
    assert conditions(cluster)["ResourceReady"] == ("False", "UnknownPreset")
    assert recorder.events == [("Warning", "UnknownPreset")]


async def test_deleting_takes_the_claims_although_the_workloads_delete_is_refused(cluster):
    """G15."""
    await converge(cluster)
    cluster.delete_workspace()
    cluster.fail("delete", kinds.DEPLOYMENTS, Forbidden("no", status=403))
    result = await reconciler(cluster).reconcile(KEY)
    assert isinstance(result.failure, Forbidden)
    machine = cluster.body(kinds.MACHINES, "", claim_name(UID, 0))
    assert "deletionTimestamp" in machine["metadata"]
    assert conditions(cluster)["WorkspaceDeleting"][0] == "True"


async def test_the_workspace_goes_last(cluster):
    await converge(cluster)
    cluster.delete_workspace()
    await reconciler(cluster).reconcile(KEY)
    await reconciler(cluster).reconcile(KEY)
    assert cluster.names(kinds.WORKSPACES) == ["phi"]
    cluster.turn()
    assert cluster.names(kinds.MACHINES) == []
    await reconciler(cluster).reconcile(KEY)
    assert cluster.is_empty


async def test_a_claim_made_for_a_workspace_that_is_gone_is_deleted(cluster):
    """A delayed create: a live read confirms, then its claim goes."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    await process.reconcile(KEY)
    cluster.remove(kinds.WORKSPACES, "phi")
    await process.reconcile(KEY)
    assert cluster.names(kinds.MACHINES) == []


async def test_a_claim_whose_name_labels_were_edited_stays_its_living_workspaces(cluster):
    """The uid label decides: a slip of the hand on a label ends no paid node."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    await process.reconcile(KEY)
    machine = cluster.bodies(kinds.MACHINES)[0]
    machine["metadata"]["labels"]["kaito.sh/workspace"] = "nobody"
    cluster.seed(kinds.MACHINES, machine)
    await process.reconcile(("default", "nobody"))
    assert cluster.names(kinds.MACHINES) == [claim_name(UID, 0)]


async def test_a_claim_whose_uid_label_was_edited_keeps_its_slot(cluster):
    """G1: the name says whose it is; a typo in a label once ended a serving VM."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    await process.reconcile(KEY)
    machine = cluster.bodies(kinds.MACHINES)[0]
    machine["metadata"]["labels"]["kaito.sh/workspace-uid"] = "typo"
    cluster.seed(kinds.MACHINES, machine)
    await converge(cluster)
    assert cluster.names(kinds.MACHINES) == [claim_name(UID, 0)]
    assert cluster.workspace()["status"]["nodes"][0]["claim"] == claim_name(UID, 0)


async def test_a_claim_of_an_earlier_workspace_of_that_name_is_deleted(cluster, clock):
    await converge(cluster, passes=2)
    cluster.remove(kinds.WORKSPACES, "phi")
    cluster.add_workspace(uid="0b7d5e1c-second")
    await converge(cluster)
    assert cluster.names(kinds.MACHINES) == [claim_name("0b7d5e1c-second", 0)]


async def test_a_cache_that_is_behind_ends_no_claim_of_a_living_workspace(cluster):
    """The live read has the last word."""
    process = reconciler(cluster)
    await process.reconcile(KEY)
    await process.reconcile(KEY)
    cluster.freeze(without=kinds.WORKSPACES)
    await process.reconcile(KEY)
    assert cluster.names(kinds.MACHINES) == [claim_name(UID, 0)]


async def test_what_cannot_be_read_is_told_and_costs_nothing(cluster):
    """One bad object is its own trouble: no claim, a condition with the field, one write."""
    cluster.edit(kinds.WORKSPACES, "phi", lambda o: o["resource"].update(count="many"))
    await converge(cluster, passes=3)
    assert cluster.made == []
    assert conditions(cluster)["ResourceReady"] == ("False", "Undecodable")
    version = cluster.workspace()["metadata"]["resourceVersion"]
    await reconciler(cluster).reconcile(KEY)
    assert cluster.workspace()["metadata"]["resourceVersion"] == version


async def test_what_cannot_be_read_can_be_deleted(cluster):
    await converge(cluster)
    cluster.edit(kinds.WORKSPACES, "phi", lambda o: o["resource"].update(count="many"))
    cluster.delete_workspace()
    await converge(cluster, passes=4)
    assert cluster.is_empty


async def test_a_key_of_nothing_is_quiet(cluster):
    result = await reconciler(cluster).reconcile(("default", "gone"))
    assert (result.requeue_after, result.failure, cluster.written()) == (None, None, [])


async def test_a_live_read_that_fails_deletes_nothing_and_holds_nothing_else(cluster, clock):
    await converge(cluster, passes=2)
    cluster.remove(kinds.WORKSPACES, "phi")
    cluster.add_workspace(uid="0b7d5e1c-second")
    cluster.fail("get", kinds.WORKSPACES, ServerUnavailable("busy", status=503))
    result = await reconciler(cluster).reconcile(KEY)
    assert isinstance(result.failure, ServerUnavailable)
    assert cluster.names(kinds.MACHINES) == [claim_name(UID, 0)]
    assert cluster.workspace()["metadata"]["finalizers"]


async def test_a_nodeclaim_of_this_workspace_holds_its_slot_too(cluster):
    """G1: of either kind, whatever --node-api says now."""
    labels = {
        "kaito.sh/workspace": "phi",
        "kaito.sh/workspacenamespace": "default",
        "kaito.sh/workspace-uid": UID,
    }
    cluster.seed(kinds.NODECLAIMS, {"metadata": {"name": "wsother", "labels": labels}})
    await converge(cluster)
    assert cluster.names(kinds.MACHINES) == []
    assert cluster.workspace()["status"]["nodes"][0]["claim"] == "wsother"
    cluster.delete_workspace()
    await converge(cluster, passes=3)
    assert cluster.names(kinds.NODECLAIMS) == []


async def test_a_workspace_that_went_meanwhile_is_no_failure(cluster):
    await converge(cluster)
    cluster.freeze()
    cluster.remove(kinds.WORKSPACES, "phi")
    await cluster.clock.advance(700)
    assert (await reconciler(cluster).reconcile(KEY)).failure is None
