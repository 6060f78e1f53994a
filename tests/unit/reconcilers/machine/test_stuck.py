"""A claim that cannot go on says why, what helps and when it tries again; and then goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kaito.api.meta import Undecodable
from kaito.clock import rfc3339
from kaito.errors import After, CloudError, Conflict, KaitoError, ServerUnavailable, TransportError
from kaito.provisioner.backends.byo import ByoBackend
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Delete, Event
from kaito.reconcilers.kinds import MACHINES, NODECLAIMS, PODS
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps.drain import drain
from kaito.reconcilers.machine.steps.finalize import finalize
from kaito.reconcilers.machine.steps.launch import launch
from kaito.reconcilers.machine.summary import settle
from tests.fakes.backend import refusal
from tests.unit.reconcilers.machine.builders import (
    NAME,
    NOW,
    claim,
    gate,
    instance,
    launched_and_registered,
    node,
    said,
    state,
)
from tests.unit.reconcilers.machine.stage import KEY, Stage

DELETED = NOW - 10


def dying(**given: Any) -> State:
    on_node = {"node.kubernetes.io/exclude-from-external-load-balancers": "karpenter"}
    cordoned = node(marked=True, unschedulable=True, labels=on_node)
    values = {"nodes": (cordoned,), "instance": instance(InstanceState.READY), **given}
    return state(claim(deletionTimestamp=rfc3339(DELETED)), **values)


def test_pods_that_cannot_be_listed_hold_the_drain_until_its_deadline():
    """G18, P3.8: unknown is not empty, and not a reason to pay for ever."""
    step = drain(dying(pods=None))
    assert (step.done, step.actions) == (False, ())
    assert step.requeue_after == 5
    late = replace(dying(pods=None), now=DELETED + 1800)
    step = drain(late)
    assert step.done
    (event,) = step.actions
    assert isinstance(event, Event)
    assert event.reason == "FailedDraining"
    going = replace(late, instance=instance(InstanceState.DELETING))
    assert drain(going).actions == ()


async def test_a_machine_is_given_back_although_its_pods_cannot_be_listed():
    """G18, P3.8: once the pass ended at the list, before it decided and before it told."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    down = ServerUnavailable("etcd timeout", status=500)
    stage.kube.fail("list", PODS, down, times=10**6)
    await stage.tick()
    assert "etcd timeout" in stage.condition("Ready")["message"]
    assert stage.backend.live == 1
    for _ in range(31):
        await stage.tick(60)
    await stage.until(stage.is_gone)


def locked() -> CloudError:
    return CloudError(
        "delete agent pool: ScopeLocked",
        reason="PolicyDenied",
        retry=After(3600.0),
        remedy="Ask for an exemption",
        waits=(3600.0,),
    )


def refuse_deletes(stage: Stage, error: CloudError) -> None:
    async def refused(_name: str) -> Any:
        stage.backend.calls["delete"] += 1
        raise error

    stage.backend.terminate = refused  # type: ignore[method-assign]


async def test_a_refused_deletion_is_told_with_cause_remedy_and_next_try():
    """G18, P6.3: once it was `the machine is being given back`, for hours."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    refuse_deletes(stage, locked())
    await stage.ask_no_more()
    await stage.until(lambda: stage.backend.calls["delete"] > 0)
    told = stage.condition("TerminationDiagnosis")
    assert (told["status"], told["reason"]) == ("True", "PolicyDenied")
    for part in ("ScopeLocked", "Ask for an exemption", "next try"):
        assert part in told["message"]
    ready = stage.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Terminating")
    assert ready["message"] == told["message"]
    del stage.backend.terminate
    await stage.until(stage.is_gone, ticks=2000)


async def test_the_refusal_of_a_deletion_is_no_longer_told_once_it_is_accepted():
    """G18."""
    stage = Stage(nodes_go=False)
    stage.ask()
    await stage.until(stage.is_ready)
    refuse_deletes(stage, refusal("Throttled", waits=(2.0,)))
    await stage.ask_no_more()
    await stage.until(lambda: bool(stage.condition("TerminationDiagnosis")))
    del stage.backend.terminate
    stage.backend.delete_seconds = 100
    await stage.until(lambda: stage.backend.instances[0].state is InstanceState.DELETING, ticks=600)
    await stage.tick()
    assert stage.condition("TerminationDiagnosis") == {}
    assert "is being deleted" in stage.condition("Ready")["message"]


async def test_a_leftover_that_the_cloud_keeps_is_told_on_the_claim_that_waits_for_its_end():
    """G18: the next machine comes only after it, so the wait needs its cause."""
    stage = Stage()
    stage.backend.add_leftover(NAME, "uid-of-old")
    refuse_deletes(stage, locked())
    stage.ask()
    await stage.until(lambda: bool(stage.condition("TerminationDiagnosis")))
    launched = stage.condition("MachineLaunched")
    assert (launched["status"], launched["reason"]) == ("Unknown", "PolicyDenied")
    del stage.backend.terminate
    await stage.until(stage.is_ready, ticks=2000)
    assert stage.condition("TerminationDiagnosis") == {}


async def test_a_machine_of_another_live_claim_is_kept_and_the_claim_says_whose_it_is():
    """G6, G18."""
    stage = Stage()
    stage.kube.seed(NODECLAIMS, {"metadata": {"name": NAME}, "spec": {}})
    other = stage.kube.body(NODECLAIMS, "", NAME)
    assert other is not None
    stage.backend.add_leftover(NAME, other["metadata"]["uid"])
    stage.ask()
    await stage.tick()
    assert "NodeClaim" in stage.condition("TerminationDiagnosis")["message"].replace(
        "nodeclaim", "NodeClaim"
    )
    assert stage.backend.calls["delete"] == 0


async def test_a_retry_after_of_zero_is_not_taken_at_its_word():
    """P6.3: once ten DELETEs went out without a moment between."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    refuse_deletes(stage, refusal("Throttled", waits=(0.0,)))
    await stage.until(lambda: stage.backend.calls["delete"] > 0)
    result = await stage.process.reconciler.reconcile(KEY)
    assert result.requeue_after is None or result.requeue_after >= 0.8


@pytest.mark.parametrize(
    "error", [TransportError("timed out"), Conflict("409", status=409)], ids=["cut", "conflict"]
)
async def test_a_launch_that_was_never_sent_is_not_told_as_creating(error: KaitoError):
    """G18: the live read before the PUT failed; nothing was asked of the cloud."""
    stage = Stage()
    stage.ask()
    await stage.process.work()
    await stage.clock.advance(5)
    await stage.process.inventory._list()
    stage.kube.fail("get", MACHINES, error, times=1)
    result = await stage.process.reconciler.reconcile(KEY)
    assert result.failure is error
    assert stage.backend.calls["put"] == 0
    launched = stage.condition("MachineLaunched")
    assert (launched["status"], launched["reason"]) == ("Unknown", "AwaitingReconciliation")
    assert str(error) in launched["message"]
    assert "Launching" not in stage.recorder.reasons
    await stage.until(stage.is_ready)
    assert stage.recorder.reasons[0] == "Launching"


def test_a_diagnosis_has_no_time_that_is_over_once_the_next_attempt_is_under_way():
    """P6.3: the cause stays told, the wait is over."""
    made = claim(gate=gate(next=NOW - 1, at=NOW - 60))
    step = launch(state(made, instance=instance(InstanceState.CREATING)))
    told = next(c for c in step.conditions if c.type == "LaunchDiagnosis")
    assert told.reason == "QuotaExceeded"
    assert "too many cores" in told.message
    assert "next is at" not in told.message
    assert "under way" in told.message
    ordered = launch(state(made))
    assert told in ordered.conditions


async def test_after_the_remedy_for_byo_was_followed_the_claim_gets_its_machine():
    """G11: nobody edits the claim when the operator gets another provisioner."""
    stage = Stage()
    stage.ask()
    cloud, stage.backend = stage.backend, ByoBackend()  # type: ignore[assignment]
    stage.restart()
    for _ in range(4):
        await stage.clock.advance(5)
        await stage.process.inventory._list()
        await stage.process.work()
    assert stage.condition("LaunchDiagnosis")["reason"] == "BringYourOwnNodes"
    stage.backend = cloud
    stage.restart()
    await stage.until(stage.is_ready, ticks=150)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"conditions": launched_and_registered(), "node_name": "n"}, "the machine and its Node"),
        ({}, "no machine is left"),
    ],
    ids=["had one", "never had a Node"],
)
def test_the_last_event_tells_what_there_was(given: Any, says: str):
    """G18."""
    made = claim(deletionTimestamp=rfc3339(DELETED), **given)
    event = finalize(state(made)).actions[0]
    assert isinstance(event, Event)
    assert says in event.note


def test_the_last_event_does_not_call_a_strangers_pool_gone():
    """G18, P2.4."""
    made = claim(deletionTimestamp=rfc3339(DELETED))
    foreign = instance(InstanceState.READY, uid=None, ours=False)
    event = finalize(state(made, instance=foreign)).actions[0]
    assert isinstance(event, Event)
    assert "not ours" in event.note


async def test_a_claim_that_cannot_be_read_keeps_what_it_says_and_is_written_once():
    """G18, P2.5: once one write per pass, and every other condition was wiped."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    before = {t: stage.condition(t) for t in ("MachineLaunched", "MachineRegistered")}
    body = stage.claim
    assert body is not None
    body["spec"]["requirements"] = "x"
    stage.kube.seed(MACHINES, body)
    await stage.tick()
    ready = stage.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Undecodable")
    assert "spec.requirements" in ready["message"]
    assert "Correct" in ready["message"]
    assert {t: stage.condition(t) for t in before} == before
    writes = len(stage.kube.writes())
    for _ in range(5):
        await stage.tick()
    assert len(stage.kube.writes()) == writes


async def test_a_claim_that_cannot_be_read_gives_its_machine_back():
    """G7: its name and uid are all that takes."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    body = stage.claim
    assert body is not None
    body["spec"]["requirements"] = "x"
    stage.kube.seed(MACHINES, body)
    await stage.tick()
    await stage.ask_no_more()
    await stage.until(stage.is_gone)


async def test_a_claim_whose_label_was_taken_off_is_still_given_back():
    """G7: our finalizer and our other marks decide what is ours."""
    stage = Stage()
    stage.ask()
    await stage.until(stage.is_ready)
    body = stage.claim
    assert body is not None
    del body["metadata"]["labels"]["kaito.sh/workspace"]
    stage.kube.seed(MACHINES, body)
    await stage.tick()
    await stage.ask_no_more()
    await stage.until(stage.is_gone)


@pytest.mark.parametrize(
    ("changes", "ours"),
    [
        ({"labels": {"kaito.sh/workspace-uid": "w"}}, True),
        ({"labels": {}}, False),
        ({"labels": {"kaito.sh/workspace-uid": "w"}, "finalizers": ["theirs"]}, False),
        ({"labels": {"kaito.sh/workspace-uid": "w"}, "deletionTimestamp": None}, False),
    ],
    ids=["uid label", "no mark", "not our finalizer", "not being deleted"],
)
def test_what_makes_a_dying_claim_ours(changes: dict[str, Any], ours: bool):
    """G7, P1.21."""
    made = claim(**{"deletionTimestamp": rfc3339(DELETED), **changes})
    assert state(made).is_ours is ours


def test_a_dying_claim_without_labels_is_known_by_its_node():
    """G7."""
    made = claim(deletionTimestamp=rfc3339(DELETED), labels={})
    ours = node(marked=True, labels={"kaito.sh/claim-uid": "uid-1"})
    assert state(made, nodes=(ours,)).is_ours
    assert not state(made, nodes=(node(),)).is_ours


def test_forced_deletes_need_known_pods():
    """P3.8."""
    late = replace(dying(pods=None), now=DELETED + 1800)
    assert not [a for a in drain(late).actions if isinstance(a, Delete)]


def test_a_cause_told_before_stays_when_nothing_new_is_known():
    """G18: between two tries the claim still says why."""
    cause = said("TerminationDiagnosis", "True", "PolicyDenied", "locked")
    made = claim(deletionTimestamp=rfc3339(DELETED), conditions=(cause,))
    after = settle(state(made, instance=instance(InstanceState.READY)), (), now=rfc3339(NOW))
    assert cause in after
    assert next(c for c in after if c.type == "Ready").message == "locked"


def test_conditions_that_are_themselves_unreadable_are_none():
    """G18: what cannot be read cannot be kept."""
    raw = b'{"metadata":{"name":"m"},"spec":{},"status":{"conditions":"x"}}'
    found = MACHINES.decode(raw)
    assert isinstance(found, Undecodable)
    assert found.conditions == ()
