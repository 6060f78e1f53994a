from kaito.api.conditions import Condition
from kaito.reconcilers.actions import Event
from kaito.reconcilers.chain import Step, decide


def done(state):
    return Step(True, (Event("Normal", "A", "a"),), (Condition("A", "True", "A"),))


def held(state):
    return Step(False, (Event("Normal", "B", "b"),), (Condition("B", "False", "B"),), 30.0)


def later(state):
    return Step(True, (Event("Normal", "C", "c"),), (Condition("C", "False", "C"),), 10.0, ("X",))


def test_a_held_chain_drops_later_actions_and_no_report():
    """G18: holding stops actions, never reporting."""
    plan = decide((done, held, later), None)
    assert [action.reason for action in plan.actions] == ["A", "B"]
    assert [condition.type for condition in plan.conditions] == ["A", "B", "C"]
    assert plan.held_at == "held"
    assert plan.requeue_after == 10.0
    assert plan.drops == ("X",)


def test_a_chain_that_is_done_waits_for_nothing():
    plan = decide((done,), None)
    assert plan.held_at is None
    assert plan.requeue_after is None
