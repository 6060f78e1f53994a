"""A claim being deleted: Node drained, machine gone, Node gone, finalizer off."""

from dataclasses import replace

import pytest

from kaito.api.views import Toleration
from kaito.clock import rfc3339
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.actions import Delete, Event, Evict, Patch, RemoveFinalizer, Terminate
from kaito.reconcilers.chain import Plan, decide
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps.chains import TERMINATION
from kaito.reconcilers.machine.steps.drain import drain
from tests.unit.reconcilers.machine.builders import NOW, claim, instance, node, pod, state

DELETED = NOW - 10


def dying(**given) -> State:
    return state(claim(deletionTimestamp=rfc3339(DELETED)), **given)


def acts(plan: Plan) -> list[type]:
    return [type(a) for a in plan.actions if not isinstance(a, Event)]


def cordoned(**given):
    return node(
        marked=True,
        unschedulable=True,
        labels={"node.kubernetes.io/exclude-from-external-load-balancers": "karpenter"},
        **given,
    )


def test_the_node_is_cordoned_first():
    """P2.1, P3.13."""
    plan = decide(TERMINATION, dying(nodes=(node(marked=True),), instance=instance()))
    (event, patch) = plan.actions
    assert isinstance(event, Event)
    assert event.reason == "Draining"
    assert isinstance(patch, Patch)
    assert patch.body["spec"] == {"unschedulable": True}
    assert plan.held_at == "drain"
    assert plan.requeue_after == 0


def test_pods_are_asked_to_leave_and_held_for():
    """P3.11."""
    given = dying(nodes=(cordoned(),), pods=(pod("a"), pod("b")), instance=instance())
    plan = decide(TERMINATION, given)
    assert acts(plan) == [Evict, Evict]
    assert (plan.held_at, plan.requeue_after) == ("drain", 5)


@pytest.mark.parametrize(
    "stays",
    [
        pod("x", owner="DaemonSet"),
        pod("x", annotations={"kubernetes.io/config.mirror": "y"}),
        pod("x", phase="Succeeded"),
        pod("x", phase="Failed"),
        pod("x", tolerations=(Toleration("node.kubernetes.io/unschedulable", "Exists"),)),
        pod("x", tolerations=(Toleration("", "Exists"),)),
        pod("x", deleted=rfc3339(NOW - 61)),
    ],
    ids=["daemon", "mirror", "succeeded", "failed", "tolerates", "tolerates all", "stuck"],
)
def test_pods_that_no_drain_waits_for(stays):
    """P3.11."""
    assert drain(dying(nodes=(cordoned(),), pods=(stays,), instance=instance())).done


def test_critical_pods_are_asked_last():
    """P3.11."""
    critical = pod("dns", priority="system-cluster-critical")
    step = drain(dying(nodes=(cordoned(),), pods=(critical, pod("a")), instance=instance()))
    assert [a.ref.name for a in step.actions if isinstance(a, Evict)] == ["a"]
    step = drain(dying(nodes=(cordoned(),), pods=(critical,), instance=instance()))
    assert [a.ref.name for a in step.actions if isinstance(a, Evict)] == ["dns"]


def test_a_leaving_pod_is_waited_for_and_not_asked_again():
    leaving = pod("a", deleted=rfc3339(NOW))
    step = drain(dying(nodes=(cordoned(),), pods=(leaving,), instance=instance()))
    assert (step.done, step.actions) == (False, ())


def test_at_the_deadline_pods_are_deleted_and_the_machine_goes():
    """P3.8: 30 minutes; W23."""
    late = replace(
        dying(nodes=(cordoned(),), pods=(pod("a"),), instance=instance(InstanceState.READY)),
        now=DELETED + 1800,
    )
    plan = decide(TERMINATION, late)
    assert acts(plan) == [Delete, Terminate]
    assert "FailedDraining" in [a.reason for a in plan.actions if isinstance(a, Event)]


@pytest.mark.parametrize(
    ("phase", "abort"),
    [
        (InstanceState.CREATING, True),
        (InstanceState.BUSY, True),
        (InstanceState.READY, False),
        (InstanceState.FAILED, False),
    ],
)
def test_the_machine_is_given_back_in_every_phase(phase: InstanceState, abort: bool):
    """P3.13, W5, W14: by claim name, aborted first when busy."""
    plan = decide(TERMINATION, dying(instance=instance(phase)))
    (terminate,) = [a for a in plan.actions if isinstance(a, Terminate)]
    assert terminate.abort is abort
    assert plan.held_at == "terminate"


@pytest.mark.parametrize(
    "given",
    [
        {"instance": instance(InstanceState.DELETING)},
        {"instance": instance(InstanceState.READY), "is_awaited": True},
        {"is_awaited": True},
        {"listed_at": None},
        {"listed_at": DELETED + 0.5},
    ],
    ids=["deleting", "just asked", "just asked, unseen", "no list", "list too old"],
)
def test_the_finalizer_stays_until_absence_is_proven(given: dict):
    """P3.16: only by a list that began after every call of ours and after the deletion."""
    plan = decide(TERMINATION, dying(**given))
    assert acts(plan) == []
    assert plan.held_at == "terminate"


def test_an_old_list_is_followed_by_a_new_one():
    assert dying(listed_at=DELETED + 0.5).wants_list
    assert not dying(listed_at=DELETED + 0.5, is_awaited=True).wants_list
    assert not dying(listed_at=DELETED + 1).wants_list
    just = state(claim(deletionTimestamp=rfc3339(NOW)), listed_at=NOW - 5)
    assert not just.wants_list
    assert decide(TERMINATION, just).requeue_after == 1


def test_a_claim_never_launched_goes_without_a_call():
    """P3.10: nothing to clean, and a list proves it."""
    assert acts(decide(TERMINATION, dying())) == [RemoveFinalizer]


def test_a_strangers_pool_of_that_name_is_left_alone():
    """P2.4."""
    foreign = instance(InstanceState.READY, uid=None, ours=False)
    assert acts(decide(TERMINATION, dying(instance=foreign))) == [RemoveFinalizer]


def test_the_node_goes_after_the_machine_and_before_the_claim():
    """P3.13."""
    plan = decide(TERMINATION, dying(nodes=(cordoned(),)))
    assert acts(plan) == [Delete, RemoveFinalizer]
    assert [a.ref.kind for a in plan.actions if isinstance(a, Delete | RemoveFinalizer)] == [
        "Node",
        "Node",
    ]
    assert (plan.held_at, plan.requeue_after) == ("node_removal", 1)


def test_waiting_for_the_machine_does_not_spin():
    """A held step's wish to look again counts: it must not have one then."""
    given = dying(nodes=(cordoned(),), instance=instance(InstanceState.DELETING))
    assert decide(TERMINATION, given).requeue_after is None


def test_only_our_finalizer_goes_and_by_its_place():
    """G12, A16."""
    made = claim(
        deletionTimestamp=rfc3339(DELETED), finalizers=["a", "karpenter.sh/termination", "b"]
    )
    plan = decide(TERMINATION, state(made))
    (event, removal) = plan.actions
    assert isinstance(event, Event)
    assert event.reason == "Terminated"
    assert isinstance(removal, RemoveFinalizer)
    assert removal.index == 1


def test_a_claim_that_others_hold_is_not_written_again():
    made = claim(deletionTimestamp=rfc3339(DELETED), finalizers=["others"])
    assert decide(TERMINATION, state(made)) == Plan()
