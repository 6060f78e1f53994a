"""Nodes and pools that bear the claim's name and are not the claim's."""

from __future__ import annotations

from typing import Any

import pytest

from kaito.errors import TransportError
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.kinds import MACHINES, NODECLAIMS, NODES, PODS
from kaito.reconcilers.machine.state import State, nodes_of
from kaito.reconcilers.machine.steps.launch import launch
from tests.fakes.backend import InMemoryBackend
from tests.unit.reconcilers.machine.builders import (
    NAME,
    UID,
    claim,
    instance,
    launched_and_registered,
    node,
    state,
)
from tests.unit.reconcilers.machine.stage import Stage

FOREIGN = instance(InstanceState.READY, uid=None, ours=False)


def condition(step: Any, type_: str = "MachineLaunched") -> Any:
    return next(c for c in step.conditions if c.type == type_)


def strangers_node(stage: Stage, name: str = "aks-strangers-0") -> dict[str, Any]:
    """As AKS makes it: labelled with its pool, and with nothing of ours."""
    stage.kube.seed(
        NODES,
        {
            "metadata": {"name": name, "labels": {"kubernetes.azure.com/agentpool": NAME}},
            "spec": {"providerID": "azure:///stranger/0"},
            "status": {
                "allocatable": {"cpu": "6"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
    )
    made = stage.kube.body(NODES, "", name)
    assert made is not None
    return made


async def test_a_strangers_node_is_not_taken_drained_or_deleted():
    """G7, P2.4: a Node without our claim's uid is of a pool of ours, or it is none of ours."""
    stage = Stage(nodes_go=False)
    stage.backend.add_foreign(NAME)
    found = strangers_node(stage)
    body = {"metadata": {"namespace": "prod", "name": "payroll"}, "status": {"phase": "Running"}}
    stage.kube.seed(PODS, {**body, "spec": {"nodeName": "aks-strangers-0", "containers": []}})
    stage.ask()
    for _ in range(6):
        await stage.tick()
    assert stage.condition("LaunchDiagnosis")["reason"] == "NameTaken"
    assert stage.condition("Ready")["status"] == "False"
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None)
    assert stage.kube.bodies(NODES) == [found]
    assert len(stage.kube.bodies(PODS)) == 1
    assert [i.state for i in stage.backend.instances] == [InstanceState.READY]


async def test_a_strangers_node_is_left_alone_before_the_first_list_too():
    """G7: as long as nobody knows whose the pool is, the Node is nobody's."""
    stage = Stage(nodes_go=False)
    found = strangers_node(stage)
    stage.ask()
    await stage.process.work()
    await stage.ask_no_more()
    await stage.process.work()
    assert stage.kube.bodies(NODES) == [found]


OTHERS = {"kaito.sh/claim-uid": "another"}
OURS = {"kaito.sh/claim-uid": UID}


@pytest.mark.parametrize(
    ("found", "pool", "counts"),
    [
        (node(labels=OURS), None, True),
        (node(labels=OURS), FOREIGN, True),
        (node(labels=OTHERS), None, False),
        (node(labels=OTHERS), instance(), False),
        (node(labels=OTHERS, marked=True), instance(), False),
        (node(marked=True), None, True),
        (node(marked=True), FOREIGN, True),
        (node(), instance(uid=None), True),
        (node(), instance(), False),
        (node(), instance(uid="another"), False),
        (node(), FOREIGN, False),
        (node(), None, False),
    ],
    ids=[
        "our uid",
        "our uid, the name is a stranger's by now",
        "another uid",
        "another uid in our pool",
        "another uid, and our mark",
        "our mark",
        "our mark, the pool's labels were edited",
        "bare, in a pool that the original made",
        "bare, in a pool that labels its Nodes",
        "bare, in a leftover",
        "bare, in a stranger's pool",
        "bare, no pool",
    ],
)
def test_whose_a_node_is(found: Any, pool: Any, counts: bool):
    """G7, P2.4."""
    assert nodes_of(UID, (found,), pool) == ((found,) if counts else ())


def test_a_strangers_pool_is_told_for_a_claim_that_once_had_its_own():
    """P2.4: it lost its pool, somebody else took the name."""
    made = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    step = launch(state(made, instance=FOREIGN))
    assert (step.done, step.actions) == (False, ())
    assert condition(step, "LaunchDiagnosis").reason == "NameTaken"


def test_a_serving_node_outweighs_a_pool_whose_labels_were_edited():
    """G8: the machine is there, whatever became of the labels on its pool."""
    made = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    step = launch(state(made, instance=FOREIGN, nodes=(node(marked=True),)))
    assert condition(step).status == "True"


async def _force_deleted_and_asked_again(stage: Stage) -> None:
    stage.ask()
    await stage.until(stage.is_ready)
    body = stage.claim
    assert body is not None
    stage.kube.seed(MACHINES, {**body, "metadata": {**body["metadata"], "finalizers": []}})
    await stage.ask_no_more()
    assert stage.claim is None
    stage.ask()


async def test_the_node_of_a_claim_that_is_gone_does_not_keep_the_name_from_the_next():
    """G7, G8: its finalizer was ours, and no claim is left that would take it off."""
    stage = Stage()
    await _force_deleted_and_asked_again(stage)
    await stage.until(stage.is_ready)
    assert stage.claim is not None
    (body,) = stage.kube.bodies(NODES)
    assert body["metadata"]["labels"]["kaito.sh/claim-uid"] == stage.claim["metadata"]["uid"]
    assert "deletionTimestamp" not in body["metadata"]
    assert (stage.backend.created, stage.backend.peak) == (2, 1)


async def test_the_node_of_a_gone_claim_is_let_go_when_the_next_one_goes_too():
    """G7: otherwise it would hang in the cluster for ever."""
    stage = Stage(nodes_go=False)
    stage.ask()
    strangers_node(stage, "aks-old-0")
    (body,) = stage.kube.bodies(NODES)
    body["metadata"]["labels"]["kaito.sh/claim-uid"] = "a claim long gone"
    body["metadata"]["finalizers"] = ["karpenter.sh/termination"]
    stage.kube.seed(NODES, body)
    await stage.process.work()
    await stage.kube.delete(NODES, "", "aks-old-0")
    await stage.ask_no_more()
    await stage.until(lambda: stage.claim is None)
    assert stage.kube.bodies(NODES) == []


@pytest.mark.parametrize("kind", [MACHINES, NODECLAIMS], ids=["Machine", "NodeClaim"])
async def test_the_node_of_a_live_claim_keeps_its_finalizer(kind: Any):
    """G6: a live read by name comes first; the cache may be the one that is behind."""
    stage = Stage(nodes_go=False)
    stage.ask()
    await stage.process.work()
    known = stage.claim
    assert known is not None
    if kind is MACHINES:
        stale = stage.process.reconciler._machines.get("", NAME)
        lister = stage.process.reconciler._machines
        lister.get = lambda _namespace, _name: stale  # type: ignore[attr-defined]
        known["metadata"]["finalizers"] = []
        stage.kube.seed(MACHINES, known)
        await stage.ask_no_more()
        stage.ask()
        live = stage.claim
    else:
        stage.kube.seed(NODECLAIMS, {"metadata": {"name": NAME}, "spec": {}})
        live = stage.kube.body(NODECLAIMS, "", NAME)
    assert live is not None
    strangers_node(stage)
    (body,) = stage.kube.bodies(NODES)
    body["metadata"]["labels"]["kaito.sh/claim-uid"] = live["metadata"]["uid"]
    body["metadata"]["finalizers"] = ["karpenter.sh/termination"]
    stage.kube.seed(NODES, body)
    result = await stage.process.work()
    assert result.failure is not None
    (after,) = stage.kube.bodies(NODES)
    assert after["metadata"]["finalizers"] == ["karpenter.sh/termination"]


async def test_a_live_read_that_fails_takes_no_finalizer_off():
    """G6: unknown is not gone."""
    stage = Stage()
    await _force_deleted_and_asked_again(stage)
    stage.kube.fail("get", MACHINES, TransportError("cut"), times=1)
    await stage.process.work()
    (body,) = stage.kube.bodies(NODES)
    assert body["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    await stage.until(stage.is_ready)


async def test_a_node_whose_pool_is_going_does_not_register():
    """G8: the pool was deleted by hand between the Node's join and our pass."""
    stage = Stage()
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    await stage.tick(1)
    await stage.clock.advance(12)
    await stage._as_the_world(stage._vms())
    assert len(stage.kube.bodies(NODES)) == 1
    await InMemoryBackend.terminate(stage.backend, NAME)
    await stage.process.inventory._list()
    await stage.process.work()
    assert stage.condition("MachineRegistered")["status"] != "True"
    assert "is being deleted" in stage.condition("MachineLaunched")["message"]
    await stage.until(stage.is_ready)
    assert (stage.backend.created, stage.backend.peak) == (2, 1)


async def test_a_node_marked_before_its_pool_went_is_let_go():
    """G8: the mark was on, the claim's status not yet; the next VM has the same Node name."""
    stage = Stage(join_seconds=0)
    stage.ask()
    await stage.until(lambda: stage.backend.live == 1)
    await stage._as_the_world(stage._vms())
    await stage.process.inventory._list()
    await stage.process.reconciler.reconcile(("", NAME))  # marks
    (body,) = stage.kube.bodies(NODES)
    assert body["metadata"]["finalizers"] == ["karpenter.sh/termination"]
    assert stage.condition("MachineRegistered")["status"] != "True"
    await InMemoryBackend.terminate(stage.backend, NAME)
    stage.join_seconds = 10
    await stage.until(stage.is_ready)
    assert (stage.backend.created, stage.backend.peak) == (2, 1)


@pytest.mark.parametrize(
    "pool",
    [instance(InstanceState.DELETING), instance(uid="another"), FOREIGN, None],
    ids=["deleting", "of another claim", "a stranger's", "none"],
)
def test_before_registration_a_node_proves_a_machine_only_with_its_pool(pool: Any):
    """G8."""
    found = (node(labels=OURS),)
    given: State = state(instance=pool, nodes=found)
    assert given.joined == ()
    assert not given.is_launched
    kept = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    assert state(kept, instance=pool, nodes=found).joined == found
