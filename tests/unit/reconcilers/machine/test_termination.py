"""A claim being deleted: Node drained, machine gone, Node gone, finalizer off."""

from dataclasses import replace

import pytest

from kaito.api.views import Toleration
from kaito.clock import rfc3339
from kaito.constants import TERMINATION_FINALIZER
from kaito.provisioner.asks import Asks, Call, Farewell
from kaito.provisioner.interface import InstanceState, Word
from kaito.reconcilers.actions import Delete, Event, Evict, Patch, Prove, RemoveFinalizer, Terminate
from kaito.reconcilers.chain import Plan, decide
from kaito.reconcilers.machine.state import State
from kaito.reconcilers.machine.steps.chains import TERMINATION
from kaito.reconcilers.machine.steps.drain import drain
from tests.unit.reconcilers.machine.builders import (
    NOW,
    UID,
    claim,
    gate,
    instance,
    node,
    pod,
    said,
    state,
)

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
    ("phase", "is_settled"),
    [
        (InstanceState.CREATING, False),
        (InstanceState.BUSY, False),
        (InstanceState.READY, True),
        (InstanceState.FAILED, True),
    ],
)
def test_the_machine_is_given_back_in_every_phase(phase: InstanceState, is_settled: bool):
    """P3.13, W5, W14: by claim name; what a list calls busy is looked at before it is aborted."""
    plan = decide(TERMINATION, dying(instance=instance(phase)))
    (terminate,) = [a for a in plan.actions if isinstance(a, Terminate)]
    assert terminate.is_settled is is_settled
    assert plan.held_at == "terminate"


GONE = Farewell(UID, is_answered=True, is_absent=True)


@pytest.mark.parametrize(
    "given",
    [
        {"instance": instance(InstanceState.DELETING), "farewell": GONE},
        {"instance": instance(InstanceState.READY), "is_awaited": True, "farewell": GONE},
        {"is_awaited": True, "farewell": GONE},
        {"listed_at": None, "farewell": GONE},
        {"unshown": {Call.TERMINATE: 7.0}},
        {"farewell": replace(GONE, is_absent=False), "unshown": {Call.PROVE: 7.0}},
    ],
    ids=["deleting", "just asked", "no list since", "no list", "deletion unseen", "still there"],
)
def test_the_finalizer_stays_until_absence_is_proven(given: dict):
    """G8, P3.16: the cloud's live word, and a list that began after it."""
    plan = decide(TERMINATION, dying(**given))
    assert acts(plan) == []
    assert plan.held_at == "terminate"
    assert plan.requeue_after == (7.0 if "unshown" in given else None)


def test_one_list_without_the_machine_proves_nothing():
    """G8: it may be behind; a deletion is asked for by name, after a live look."""
    (asked,) = decide(TERMINATION, dying()).actions
    assert isinstance(asked, Terminate)
    assert (asked.instance_claim_uid, asked.is_settled) == (None, False)


def test_a_deletion_that_was_accepted_is_proven_by_one_look():
    """G8: seen gone in the list, then in the cloud's own word."""
    given = dying(farewell=Farewell(UID, is_answered=True))
    assert acts(decide(TERMINATION, given)) == [Prove]
    assert acts(decide(TERMINATION, replace(given, farewell=GONE))) == [RemoveFinalizer]


def test_a_look_alone_is_no_proof():
    """G8: a deletion is to be answered as well, as what reads may be behind what writes."""
    given = dying(farewell=Farewell(UID, is_absent=True))
    assert acts(decide(TERMINATION, given)) == [Terminate]


def test_a_claim_that_goes_no_longer_names_a_next_try():
    """P6.3: nothing is launched for it any more."""
    assert "LaunchDiagnosis" in decide(TERMINATION, dying(instance=instance())).drops


def test_the_word_for_another_claim_of_that_name_counts_for_nothing():
    """G6: a claim may be made anew under its name."""
    asks = Asks()
    asks.hear("a", "uid-0", Word.ABSENT, was_deletion=True)
    assert asks.farewell("a", "uid-1") == Farewell("uid-1")


def test_an_accepted_deletion_is_not_repeated_before_the_list_had_its_chance():
    """G8, P5.12: a list that is behind shows the machine as it was."""
    given = dying(instance=instance(InstanceState.READY), unshown={Call.TERMINATE: 3.0})
    plan = decide(TERMINATION, given)
    assert (acts(plan), plan.requeue_after) == ([], 3.0)
    assert acts(decide(TERMINATION, replace(given, unshown={Call.TERMINATE: 0.0}))) == [Terminate]


def test_a_machine_that_the_list_lacks_is_drained_if_it_is_there():
    """G8, P3.13: the list may be behind; asked once, then the Node is drained as always."""
    given = dying(nodes=(cordoned(),), pods=(pod("a"),))
    assert acts(decide(TERMINATION, given)) == [Prove]
    assert acts(decide(TERMINATION, replace(given, unshown={Call.PROVE: 9.0}))) == [Evict]
    gone = replace(given, farewell=Farewell(UID, is_absent=True))
    assert acts(decide(TERMINATION, gone)) == [Terminate]  # no pod holds up what is gone


@pytest.mark.parametrize(
    "given",
    [
        {"finalizers": ["others", TERMINATION_FINALIZER]},
        {"finalizers": ["others"], "gate": gate()},
        {"finalizers": ["others"], "conditions": (said("MachineLaunched"),)},
    ],
    ids=["our finalizer", "a launch was refused", "launched"],
)
def test_whatever_says_that_a_launch_was_asked_for_calls_for_proof(given: dict):
    """G8, W6: a process may have crashed with its PUT sent."""
    made = claim(deletionTimestamp=rfc3339(DELETED), **given)
    assert acts(decide(TERMINATION, state(made))) == [Terminate]


def test_a_strangers_pool_of_that_name_is_looked_at_and_left_alone():
    """P2.4, G8: the list that shows it may be older than a pool of ours."""
    foreign = instance(InstanceState.READY, uid=None, ours=False)
    (asked,) = decide(TERMINATION, dying(instance=foreign)).actions
    assert isinstance(asked, Terminate)
    assert not asked.is_settled
    assert acts(decide(TERMINATION, dying(instance=foreign, farewell=GONE))) == [RemoveFinalizer]


def test_the_node_goes_after_the_machine_and_before_the_claim():
    """P3.13."""
    plan = decide(TERMINATION, dying(nodes=(cordoned(),), farewell=GONE))
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
    plan = decide(TERMINATION, state(made, farewell=GONE))
    (event, removal) = plan.actions
    assert isinstance(event, Event)
    assert event.reason == "Terminated"
    assert isinstance(removal, RemoveFinalizer)
    assert removal.index == 1


def test_a_claim_that_others_hold_is_not_written_again():
    made = claim(deletionTimestamp=rfc3339(DELETED), finalizers=["others"])
    assert decide(TERMINATION, state(made)) == Plan()
