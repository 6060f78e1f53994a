"""The one place that asks for machines."""

import pytest

from kaito.constants import ANNOTATION_LAUNCH_GATE, SKU_UNAVAILABLE_MESSAGE
from kaito.errors import CloudError
from kaito.provisioner.asks import Call
from kaito.provisioner.backends.agentpool.request import agent_pool
from kaito.provisioner.interface import Fault, InstanceState
from kaito.reconcilers.actions import Event, Launch, Patch, Terminate
from kaito.reconcilers.chain import Step, decide
from kaito.reconcilers.machine import gate as gates
from kaito.reconcilers.machine.steps.chains import LIFE
from kaito.reconcilers.machine.steps.finalizer import finalizer
from kaito.reconcilers.machine.steps.launch import failure_event, launch
from tests.unit.reconcilers.machine.builders import (
    NOW,
    claim,
    gate,
    instance,
    launched_and_registered,
    node,
    said,
    state,
)


def acts(step: Step) -> list[type]:
    return [type(a) for a in step.actions if not isinstance(a, Event)]


def told(step: Step, type_: str = "MachineLaunched") -> tuple[str, str, str]:
    found = next(c for c in step.conditions if c.type == type_)
    return found.status, found.reason, found.message


def test_the_finalizer_is_on_before_anything_is_asked_of_the_cloud():
    """P2.1, G16: the pass ends with adding it and asks for the next one itself."""
    plan = decide(LIFE, state(claim(finalizers=["other"])))
    (patch,) = plan.actions
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["finalizers"] == ["other", "karpenter.sh/termination"]
    assert patch.resource_version == "7"
    assert plan.requeue_after == 0
    assert finalizer(state()).done


def test_the_first_pass_already_tells_the_conditions():
    """P1.7a, P1.11: Kaito counts a claim without conditions as pending for minutes."""
    plan = decide(LIFE, state(claim(finalizers=[])))
    found = {c.type: (c.status, c.reason) for c in plan.conditions}
    assert found == {
        "MachineLaunched": ("Unknown", "Creating"),
        "MachineRegistered": ("False", "MachineNotLaunched"),
        "MachineInitialized": ("False", "MachineNotLaunched"),
    }


def test_no_instance_in_the_list_is_ordered():
    """P4.2, G10: labels of the claim, its disk, its taints, the launch time."""
    step = launch(state())
    (order,) = [a for a in step.actions if isinstance(a, Launch)]
    request = order.request
    assert (request.name, request.claim_uid) == ("ws0a1b2c3d4", "uid-1")
    assert request.instance_type == "Standard_NC6s_v3"
    assert request.storage_bytes == 50 * 2**30
    assert request.labels["kaito.sh/workspace-uid"] == "workspace-uid"
    assert request.taints[0].value == "gpu"
    assert request.launched_at == NOW
    assert told(step) == (
        "Unknown",
        "Creating",
        "agent pool ws0a1b2c3d4 is Creating since 2027-01-15T08:00:00Z",
    )


def test_a_quantity_beyond_all_range_is_the_backends_to_refuse():
    """P4.6: never an exception of the pass."""
    made = claim(spec={"resources": {"requests": {"storage": "1e999"}}})
    (order,) = [a for a in launch(state(made)).actions if isinstance(a, Launch)]
    with pytest.raises(CloudError, match="OS disk"):
        agent_pool(order.request)


def test_what_is_told_at_launch_is_what_the_list_will_show():
    """P1.11: no write for an elapsed time, and none for the first snapshot either."""
    listed = instance(launched_at=NOW)
    assert told(launch(state(instance=listed))) == told(launch(state()))


@pytest.mark.parametrize(
    ("given", "waits_for"),
    [
        ({"listed_at": None}, "first list"),
        ({"listed_at": None, "cloud_trouble": "no token"}, "no token"),
        ({"is_awaited": True}, "list the agent pool"),
    ],
)
def test_nothing_is_ordered_before_a_list_that_could_show_it(given: dict, waits_for: str):
    """P3.16."""
    step = launch(state(**given))
    assert acts(step) == []
    assert told(step)[:2] == ("Unknown", "AwaitingReconciliation")
    assert waits_for in told(step)[2]


def test_a_restarted_operator_takes_nothing_back_before_its_first_list():
    """What was told still stands: no flapping conditions, no writes."""
    creating = claim(conditions=(said("MachineLaunched", "Unknown", "Creating", "x"),))
    assert launch(state(creating, listed_at=None)) == Step(done=False)
    created = claim(conditions=(said("MachineLaunched"),))
    assert launch(state(created, listed_at=None)).done


@pytest.mark.parametrize("busy", [InstanceState.CREATING, InstanceState.BUSY])
def test_a_creation_under_way_is_waited_for(busy: InstanceState):
    """W3."""
    step = launch(state(instance=instance(busy)))
    assert (step.done, acts(step)) == (False, [])
    assert told(step)[:2] == ("Unknown", "Creating")


@pytest.mark.parametrize(
    "given",
    [
        {"instance": instance(InstanceState.READY)},
        {"instance": instance(InstanceState.CREATING), "nodes": (node(),)},
        {"instance": instance(InstanceState.READY, uid=None)},
    ],
    ids=["created", "joined before created", "made by the original"],
)
def test_a_machine_exists_when_the_cloud_says_so_or_its_node_is_there(given: dict):
    """P7.1, P10.1."""
    step = launch(state(**given))
    assert (step.done, acts(step)) == (True, [])
    assert told(step)[0] == "True"
    assert step.drops == ("LaunchDiagnosis",)


def test_no_second_machine_is_ever_ordered_for_a_registered_claim():
    """P0.2, G8: a VM that was bound is given up elsewhere, or not at all."""
    made = claim(conditions=launched_and_registered(), node_name="aks-node-0")
    assert launch(state(made)).done


def test_success_takes_the_gate_off():
    step = launch(state(claim(gate=gate()), instance=instance(InstanceState.READY)))
    (patch,) = step.actions
    assert isinstance(patch, Patch)
    assert patch.body["metadata"]["annotations"] == {ANNOTATION_LAUNCH_GATE: None}


def test_a_strangers_pool_is_named_and_left_alone():
    """P2.4."""
    step = launch(state(instance=instance(InstanceState.READY, uid=None, ours=False)))
    assert acts(step) == []
    assert told(step)[:2] == ("False", "LaunchFailed")
    assert told(step, "LaunchDiagnosis")[1] == "NameTaken"


def test_a_leftover_goes_before_the_order():
    """P2.4: deleted, seen gone, then PUT."""
    leftover = instance(InstanceState.READY, uid="uid-0")
    step = launch(state(instance=leftover))
    (terminate,) = [a for a in step.actions if isinstance(a, Terminate)]
    assert terminate.instance_claim_uid == "uid-0"
    assert terminate.is_settled
    assert acts(launch(state(instance=leftover, is_awaited=True))) == []
    assert acts(launch(state(instance=instance(InstanceState.DELETING, uid="uid-0")))) == []


FAULT = Fault("CapacityUnavailable", "none left", "Try later", "AllocationFailed", waits=(600,))


def test_a_failed_pool_is_written_down_before_it_is_deleted():
    """G11, P6.3: after a crash between the two the cause is still known."""
    failed = instance(InstanceState.FAILED, fault=FAULT)
    step = launch(state(instance=failed))
    assert acts(step) == [Patch]
    assert step.requeue_after == 0
    assert told(step) == ("False", "LaunchFailed", "none left")
    patch = next(a for a in step.actions if isinstance(a, Patch))
    made = claim(annotations=patch.body["metadata"]["annotations"])
    again = launch(state(made, instance=failed))
    assert acts(again) == [Terminate]
    assert told(again, "LaunchDiagnosis")[1] == "CapacityUnavailable"


def test_a_second_failed_pool_counts_as_a_second_attempt():
    """P6.3: launch times tell one attempt from the next, even within a second."""
    first = gate(reason="CapacityUnavailable", at=NOW, next=NOW)
    made = claim(gate=first)
    order = next(
        a
        for a in launch(state(made, now=NOW + 0.1, listed_at=NOW + 0.05)).actions
        if isinstance(a, Launch)
    )
    failed = instance(InstanceState.FAILED, fault=FAULT, launched_at=order.request.launched_at)
    step = launch(state(made, instance=failed, now=NOW + 0.2))
    patch = next(a for a in step.actions if isinstance(a, Patch))
    read = gates.read(claim(annotations=patch.body["metadata"]["annotations"]).metadata)
    assert read is not None
    assert read.attempt == 2
    assert read.at >= order.request.launched_at


def test_a_shut_gate_tells_the_cause_and_waits():
    """G11: also after a restart; P6.3: attempt and next time are named."""
    step = launch(state(claim(gate=gate())))
    assert acts(step) == []
    assert step.requeue_after == 590
    assert told(step) == ("False", "LaunchFailed", "too many cores")
    status, reason, message = told(step, "LaunchDiagnosis")
    assert (status, reason) == ("True", "QuotaExceeded")
    assert message == (
        "too many cores. Raise the quota. Attempt 1; the next is at 2027-01-15T08:09:50Z."
    )


def test_an_open_gate_orders_again():
    assert acts(launch(state(claim(gate=gate(next=NOW - 1))))) == [Launch]


def test_after_a_failure_a_newer_list_is_needed():
    """P5.36: an order whose answer was lost may have been carried out."""
    made = claim(gate=gate(at=NOW - 0.5, next=NOW))
    old = state(made, listed_at=NOW - 1)
    assert acts(launch(old)) == []
    assert old.wants_list
    fresh = state(made, listed_at=NOW)
    assert acts(launch(fresh)) == [Launch]
    assert not fresh.wants_list


def test_a_terminal_refusal_waits_for_an_edit():
    """P6.2: InvalidRequest is tried again on change only."""
    shut = gate(reason="InvalidRequest", next=None, generation=1)
    step = launch(state(claim(gate=shut)))
    assert (acts(step), step.requeue_after) == ([], None)
    assert "after an edit" in told(step, "LaunchDiagnosis")[2]
    assert acts(launch(state(claim(gate=shut, generation=2)))) == [Launch]


def test_the_sentence_that_callers_compare_stays_alone():
    """P1.12."""
    step = launch(state(claim(gate=gate(reason="InstanceTypeUnavailable"))))
    assert told(step) == ("False", "LaunchFailed", SKU_UNAVAILABLE_MESSAGE)
    assert "too many cores" in told(step, "LaunchDiagnosis")[2]


@pytest.mark.parametrize("reason", ["OperationInProgress", "Throttled", "CloudUnavailable"])
def test_waiting_for_the_cloud_is_no_failure(reason: str):
    """P6.2, P5.15."""
    step = launch(state(claim(gate=gate(reason=reason))))
    assert told(step)[:2] == ("Unknown", reason)


def test_while_a_failed_pool_goes_the_claim_says_so_and_names_no_past_time():
    """P6.3: `the next is at <a time long past>` stood there until the pool was gone."""
    past = claim(gate=gate(reason="CapacityUnavailable", next=NOW - 5))
    failed = instance(InstanceState.FAILED, fault=FAULT)
    going = "Attempt 1; agent pool ws0a1b2c3d4 failed (CapacityUnavailable) and is being deleted."
    for given in ({}, {"is_awaited": True}, {"unshown": {Call.TERMINATE: 4.0}}):
        message = told(launch(state(past, instance=failed, **given)), "LaunchDiagnosis")[2]
        assert message == f"too many cores. Raise the quota. {going}"


def test_while_the_next_try_runs_the_claim_names_no_past_time():
    """P6.3: the cause stays, the attempt is under way; the same words at the order and after."""
    past = claim(gate=gate(next=NOW - 5))
    creating = instance(launched_at=NOW)
    ordered, listed = launch(state(past)), launch(state(past, instance=creating))
    assert told(ordered) == told(listed)
    message = told(listed, "LaunchDiagnosis")[2]
    assert message == "too many cores. Raise the quota. Attempt 1; the next is under way."
    assert told(ordered, "LaunchDiagnosis")[2] == message


def test_every_refusal_of_one_cause_is_the_same_event():
    """P9.3: an attempt's number and time in its note made each retry an Event object of its own."""
    first, second = (failure_event(gate(attempt=n, next=NOW + n)) for n in (1, 2))
    assert first == second
    assert first.note == "too many cores. Raise the quota."


def test_an_accepted_order_is_not_repeated_before_the_list_had_its_chance():
    """P4.12, P5.36: a list that is behind is no reason to storm."""
    made = claim(conditions=(said("MachineLaunched", "Unknown", "Creating", "x"),))
    early = launch(state(made, unshown={Call.LAUNCH: 6.0}))
    assert early == Step(False, requeue_after=6.0)
    late = launch(state(made, unshown={Call.LAUNCH: 0.0}))
    assert (acts(late), late.conditions) == ([Launch], ())
    untold = launch(state(unshown={Call.LAUNCH: 6.0}))
    assert told(untold)[1] == "AwaitingReconciliation"


def test_an_accepted_deletion_of_a_failed_pool_is_not_repeated_at_once():
    """P5.12: the list shows it as Failed for as long as it is behind."""
    made = claim(gate=gate(reason="CapacityUnavailable"))
    failed = instance(InstanceState.FAILED, fault=FAULT)
    step = launch(state(made, instance=failed, unshown={Call.TERMINATE: 6.0}))
    assert (acts(step), step.requeue_after) == ([], 6.0)


def test_a_dying_pool_of_a_live_claim_is_waited_for():
    step = launch(state(instance=instance(InstanceState.DELETING)))
    assert acts(step) == []
    assert "being deleted" in told(step)[2]
