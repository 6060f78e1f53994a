"""What a pass tells: the Machine's own merge, Ready, transitions."""

import pytest

from kaito.api.conditions import Condition
from kaito.api.meta import ConditionView
from kaito.clock import rfc3339
from kaito.provisioner.interface import InstanceState
from kaito.reconcilers.machine.summary import milestones, on_wire, phase, settle, transition_events
from tests.unit.reconcilers.machine.builders import NOW, claim, instance, node, said, state

LATER = rfc3339(NOW + 60)
ALL_TRUE = tuple(
    Condition(t, "True", "") for t in ("MachineLaunched", "MachineRegistered", "MachineInitialized")
)


def settled(previous=(), current=(), *, drops=(), **given) -> dict[str, ConditionView]:
    found = settle(state(claim(conditions=previous), **given), current, now=LATER, drops=drops)
    return {c.type: c for c in found}


@pytest.mark.parametrize(
    ("current", "moved"),
    [
        (Condition("MachineLaunched", "Unknown", "Creating", "x"), False),
        (Condition("MachineLaunched", "Unknown", "Creating", "y"), True),
        (Condition("MachineLaunched", "True", ""), True),
    ],
)
def test_the_time_moves_when_any_field_of_a_condition_does(current: Condition, moved: bool):
    """P1.7d."""
    before = (said("MachineLaunched", "Unknown", "Creating", "x"),)
    time = settled(before, (current,))["MachineLaunched"].last_transition_time
    assert (time == LATER) is moved


def test_the_list_is_sorted_and_others_conditions_stay():
    """P1.7e, A10."""
    foreign = ConditionView("Foreign", "True", "R", "m", rfc3339(NOW), severity="Warning")
    found = settle(state(claim(conditions=(foreign,))), ALL_TRUE, now=LATER)
    assert [c.type for c in found] == sorted(c.type for c in found)
    assert foreign in found


def test_severity_is_only_on_what_ready_is_not_made_of():
    """P1.7b."""
    found = settled((), (Condition("LaunchDiagnosis", "True", "QuotaExceeded", "m"),))
    assert found["LaunchDiagnosis"].severity == "Info"
    assert found["Ready"].severity == ""


def test_the_wire_has_no_empty_fields_and_no_generation():
    """P1.6, A11."""
    assert on_wire((said("Ready"),)) == [
        {"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(NOW)}
    ]


def test_dropped_types_are_gone():
    assert "LaunchDiagnosis" not in settled((said("LaunchDiagnosis"),), drops=("LaunchDiagnosis",))


@pytest.mark.parametrize(
    ("previous", "current", "ready"),
    [
        ((), (), ("Unknown", "AwaitingReconciliation")),
        (
            (said("MachineInitialized", "False", "MachineNotLaunched", at=NOW),),
            (Condition("MachineLaunched", "False", "LaunchFailed", "m"),),
            ("False", "LaunchFailed"),
        ),
        (
            (said("MachineLaunched", "Unknown", "Creating", at=NOW),),
            (Condition("MachineRegistered", "Unknown", "Later"),),
            ("Unknown", "Later"),
        ),
        ((), ALL_TRUE[:2], ("Unknown", "AwaitingReconciliation")),
    ],
    ids=["nothing known", "newest False", "newest Unknown", "one missing"],
)
def test_ready_is_the_deciding_dependents(previous, current, ready: tuple[str, str]):
    """P1.7c."""
    found = settled(previous, current)["Ready"]
    assert (found.status, found.reason) == ready


def test_of_equally_new_causes_the_first_in_order_decides():
    """P1.7c: the others wait for it."""
    current = (
        Condition("MachineInitialized", "False", "MachineNotLaunched", "b"),
        Condition("MachineLaunched", "False", "LaunchFailed", "a"),
    )
    assert settled((), current)["Ready"].reason == "LaunchFailed"


@pytest.mark.parametrize(
    ("nodes", "ready"),
    [
        ((node(marked=True),), ("True", "", "")),
        ((node(marked=True, ready=False),), ("False", "NodeNotReady", "Node status is NotReady")),
        ((), ("False", "NodeNotReady", "Node is not in the cluster")),
    ],
)
def test_an_initialized_claim_follows_its_node(nodes, ready: tuple[str, str, str]):
    """U33, W29, G8: no more than a condition and an Event."""
    found = settled((), ALL_TRUE, nodes=nodes, instance=instance(InstanceState.READY))["Ready"]
    assert (found.status, found.reason, found.message) == ready


def test_a_dying_claim_is_not_ready_and_says_what_it_waits_for():
    made = claim(deletionTimestamp=rfc3339(NOW))
    (ready,) = settle(state(made), (), now=LATER)
    assert (ready.status, ready.reason) == ("False", "Terminating")
    assert ready.message


def test_each_milestone_is_told_once():
    """P9.3."""
    before, after = (said("MachineLaunched"),), (said("MachineLaunched"), said("MachineRegistered"))
    assert milestones(before, after) == ("MachineRegistered",)
    assert [e.reason for e in transition_events(before, after)] == ["Registered"]
    assert transition_events(after, after) == ()


def test_a_lost_node_is_told_when_it_is_lost():
    """P9.3."""
    lost = (said("Ready", "False", "NodeNotReady", "m"),)
    assert [e.reason for e in transition_events((said("Ready"),), lost)] == ["NodeNotReady"]
    assert transition_events(lost, lost) == ()


@pytest.mark.parametrize(
    ("true", "expected"),
    [
        ((), "launch"),
        (("MachineLaunched",), "register"),
        (("MachineLaunched", "MachineRegistered"), "initialize"),
        (("MachineLaunched", "MachineRegistered", "MachineInitialized"), "not_ready"),
        (("MachineLaunched", "MachineRegistered", "MachineInitialized", "Ready"), "ready"),
    ],
)
def test_phases_are_a_closed_set(true: tuple[str, ...], expected: str):
    """P9.2."""
    assert phase(state(), tuple(said(t) for t in true)) == expected
