"""Our own calls against lists that are behind."""

from __future__ import annotations

from kaito.provisioner.asks import Asks, Call, Farewell
from kaito.provisioner.interface import Instance, InstanceState, Word

UID = "uid-1"


def pools(state: InstanceState | None = None) -> dict[str, Instance]:
    if state is None:
        return {}
    return {"a": Instance("a", state, state.value, "Standard_NC6s_v3", True, claim_uid=UID)}


def test_the_wait_for_a_repetition_doubles_to_two_minutes():
    """P4.12: while a list was 30 s behind, PUT and DELETE went out every second."""
    asks, now, waits = Asks(), 0.0, []
    for _ in range(6):
        asks.note("a", Call.LAUNCH, now=now, is_listed=False)
        waits.append(asks.waits("a", now)[Call.LAUNCH])
        now += waits[-1]
        assert asks.waits("a", now) == {Call.LAUNCH: 0.0}
    assert waits == [10, 20, 40, 80, 120, 120]


def test_an_order_is_forgotten_when_a_list_shows_the_pool():
    asks = Asks()
    asks.note("a", Call.LAUNCH, now=0, is_listed=False)
    asks.compare(pools())
    assert asks.is_any_unshown
    asks.compare(pools(InstanceState.CREATING))
    assert not asks.is_any_unshown
    assert asks.waits("a", 0) == {}


def test_a_deletion_is_forgotten_when_a_list_shows_the_pool_going_or_gone():
    for seen in (InstanceState.DELETING, None):
        asks = Asks()
        asks.note("a", Call.TERMINATE, now=0, is_listed=True)
        asks.compare(pools(InstanceState.READY))
        assert asks.is_any_unshown
        asks.compare(pools(seen))
        assert not asks.is_any_unshown


def test_a_list_that_never_showed_the_pool_does_not_show_its_end():
    """G8: it is older than the pool."""
    asks = Asks()
    asks.note("a", Call.TERMINATE, now=0, is_listed=False)
    asks.compare(pools())
    assert asks.is_any_unshown
    asks.compare(pools(InstanceState.READY))
    assert asks.is_any_unshown
    asks.compare(pools())
    assert not asks.is_any_unshown


def test_what_is_still_there_takes_an_earlier_answer_back():
    """G8, P5.11: a deletion that failed is asked for again."""
    asks = Asks()
    asks.hear("a", UID, Word.GOING, was_deletion=True)
    assert asks.farewell("a", UID) == Farewell(UID, is_answered=True, was_there=True)
    asks.hear("a", UID, Word.ABSENT, was_deletion=False)
    assert asks.farewell("a", UID) == Farewell(UID, True, is_absent=True, was_there=True)
    asks.hear("a", UID, Word.THERE, was_deletion=False)
    assert asks.farewell("a", UID) == Farewell(UID, was_there=True)


def test_a_claim_that_is_gone_leaves_nothing_behind():
    asks = Asks()
    asks.note("a", Call.PROVE, now=0, is_listed=False)
    asks.hear("a", UID, Word.ABSENT, was_deletion=True)
    asks.forget("a")
    assert not asks.is_any_unshown
    assert asks.farewell("a", UID) == Farewell(UID)
