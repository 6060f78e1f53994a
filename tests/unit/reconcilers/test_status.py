from kaito.api.conditions import Condition
from kaito.api.meta import ConditionView
from kaito.reconcilers.status import merge, same

OLD = ConditionView("Ready", "False", "Waiting", "for a node", "2026-01-01T00:00:00Z", 1)
NOW = "2026-02-01T00:00:00Z"


def test_the_time_moves_only_with_the_status():
    """A11: and the generation is the snapshot's, whatever the object's is by now."""
    stays = merge([OLD], [Condition("Ready", "False", "Other", "words")], generation=2, now=NOW)
    flips = merge([OLD], [Condition("Ready", "True", "Ready")], generation=2, now=NOW)
    assert stays[0]["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    assert stays[0]["reason"] == "Other"
    assert flips[0]["lastTransitionTime"] == NOW
    assert flips[0]["observedGeneration"] == 2


def test_types_of_others_stay_and_dropped_ones_go():
    """A10: a foreign condition is kept from the snapshot."""
    foreign = ConditionView("Theirs", "True", "R", "m", NOW)
    gone = ConditionView("JobStarted", "True", "R", "m", NOW)
    merged = merge(
        [foreign, gone], [Condition("A", "True", "A")], generation=1, now=NOW, drops={"JobStarted"}
    )
    assert [c["type"] for c in merged] == ["A", "Theirs"]
    assert "observedGeneration" not in merged[1]


def test_there_is_one_condition_per_type_and_the_last_word_counts():
    """A11."""
    twice = [Condition("Ready", "False", "First"), Condition("Ready", "True", "Last")]
    merged = merge([OLD, OLD], twice, generation=3, now=NOW)
    assert [(c["type"], c["reason"]) for c in merged] == [("Ready", "Last")]


def test_saying_the_same_again_is_no_change():
    """A9: written only when it differs."""
    merged = merge(
        [OLD], [Condition("Ready", "False", "Waiting", "for a node")], generation=1, now=NOW
    )
    assert same([OLD], merged)
    assert not same([OLD], merge([OLD], [Condition("B", "True", "B")], generation=1, now=NOW))
