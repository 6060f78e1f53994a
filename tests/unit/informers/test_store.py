"""The cache by plain calls."""

from __future__ import annotations

import pytest

from kaito.informers.handlers import Change
from kaito.informers.store import Joined, Store, is_at_least
from tests.unit.informers.fake import Thing, thing
from tests.unit.informers.relist import relist


def colours(obj: Thing) -> list[str]:
    return [obj.colour] if obj.colour else []


def filled(*objects: Thing, **options) -> Store[Thing]:
    store: Store[Thing] = Store({"colour": colours}, **options)
    for obj in objects:
        store.apply(obj)
    return store


def listed(*objects: Thing):
    return {obj.metadata.key: obj for obj in objects}


def test_versions_compare_as_numbers_and_anything_else_for_equality():
    """R15."""
    assert is_at_least("10", "9")
    assert not is_at_least("9", "10")
    assert is_at_least("abc", "abc")
    assert not is_at_least("abd", "abc")
    assert not is_at_least("", "1")


def test_the_version_never_goes_down_but_by_a_list():
    """R15: nor does it vanish; a watch without a version would replay everything."""
    store = filled()
    for version in ("5", "9", "7", ""):
        store.advance(version)
    assert store.resource_version == "9"
    relist(store, {}, "4")
    assert store.resource_version == "4"


def test_objects_are_found_by_namespace_and_name():
    """S1: cluster-scoped ones under an empty namespace."""
    inside, outside = thing("a", 1), thing("a", 1, namespace="", uid="other")
    store = filled(inside, outside)
    assert store.get("ns", "a") is inside
    assert store.get("", "a") is outside
    assert store.get("ns", "b") is None
    assert store.list("ns") == (inside,)
    assert store.list("none") == ()
    assert len(store) == 2


def test_what_was_handed_out_does_not_change():
    """S2, S12: tuples, the same one until something changes, never a copy of an object."""
    first = thing("a", 1)
    store = filled(first)
    before = store.list()
    assert store.list() is before
    for _ in before:
        store.apply(thing("b", 2))
    assert before == (first,)
    assert before[0] is first
    assert len(store.list()) == 2


def test_an_object_under_another_uid_is_a_delete_and_an_add():
    """R31."""
    old, new = thing("a", 1, uid="1"), thing("a", 2, uid="2")
    store = filled(old)
    assert store.apply(new) == (Change(old, None), Change(None, new))
    assert store.list("ns") == (new,)
    assert relist(store, listed(old), "3") == [
        Change(new, None, relisted=True),
        Change(None, old, relisted=True),
    ]


def test_a_removal_shows_the_last_state_and_an_unknown_one_nothing():
    """S5."""
    known = thing("b", 1)
    store = filled(thing("a", 1), known)
    last = thing("a", 2)
    assert store.remove(("ns", "a"), last) == (Change(last, None),)
    assert store.remove(("ns", "a"), last) == ()
    assert store.remove(("ns", "b")) == (Change(known, None),)


def test_a_list_tells_deletions_first_then_adds_and_updates_in_its_order():
    """S4: and nothing of what is the same."""
    gone, same, old = thing("gone", 1), thing("same", 1), thing("b", 1)
    store = filled(old, same, gone)
    new, fresh = thing("b", 5), thing("fresh", 6)
    assert relist(store, listed(fresh, thing("same", 1), new), "9") == [
        Change(gone, None, relisted=True),
        Change(None, fresh, relisted=True),
        Change(old, new, relisted=True),
    ]
    assert store.resource_version == "9"


def test_an_index_follows_updates_and_forgets_empty_values():
    """S10."""
    store = filled(thing("a", 1, colour="red"), thing("b", 2, colour="red"))
    moved = thing("a", 3, colour="blue")
    store.apply(moved)
    assert store.by_index("colour", "blue") == (moved,)
    assert [t.metadata.name for t in store.by_index("colour", "red")] == ["b"]
    store.remove(moved.metadata.key)
    assert store.by_index("colour", "blue") == ()
    assert set(store._indexes["colour"]._values) == {"red"}


def test_an_index_shows_the_new_object_when_its_value_stays():
    """S10."""
    store = filled(thing("a", 1, colour="red"))
    new = thing("a", 2, colour="red")
    store.apply(new)
    assert store.by_index("colour", "red") == (new,)


def test_an_index_does_not_mix_up_two_lives_of_a_name():
    """S10, R31: same value, other uid."""
    store = filled(thing("a", 1, uid="1", colour="red"))
    new = thing("a", 2, uid="2", colour="red")
    store.apply(new)
    assert store.by_index("colour", "red") == (new,)


def test_an_index_added_late_is_filled():
    """S10: and the same one again is harmless, another of its name an error."""
    store: Store[Thing] = Store()
    red = thing("a", 1, colour="red")
    store.apply(red)
    store.add_index("colour", colours)
    store.add_index("colour", colours)
    assert store.by_index("colour", "red") == (red,)
    with pytest.raises(ValueError, match="another function"):
        store.add_index("colour", lambda obj: [])
    with pytest.raises(KeyError):
        store.by_index("size", "big")


def test_an_index_asked_for_while_a_list_is_written_aside_is_there_after_it():
    """S10, S4."""
    store = filled(thing("a", 1, colour="red"))
    aside = store.successor()
    blue = thing("a", 2, colour="blue")
    aside.apply(blue)
    store.add_index("size", lambda obj: ["any"])
    store.swap(aside, "2")
    assert store.by_index("size", "any") == (blue,)
    assert store.by_index("colour", "blue") == (blue,)
    assert store.by_index("colour", "red") == ()


def test_a_list_written_aside_shows_nothing_before_it_is_swapped_in():
    """S4: and then all at once: objects, indexes and version."""
    old, new = thing("a", 1, colour="red"), thing("b", 2, colour="blue")
    store = filled(old)
    aside = store.successor()
    aside.apply(new)
    assert (store.list(), store.by_index("colour", "blue")) == ((old,), ())
    store.swap(aside, "2")
    assert (store.list(), store.by_index("colour", "blue")) == ((new,), (new,))
    assert store.by_index("colour", "red") == ()
    assert store.resource_version == "2"
    assert aside.list() == (old,)


def test_a_deletion_and_a_departure_from_a_selector_leave_the_same_store():
    """R29: the object shows then what it was before, at the version of its leaving."""
    inside = thing("a", 1, colour="red", labels={"team": "red"})
    store = filled(inside)
    last = thing("a", 5, colour="red", labels={"team": "red"})
    assert store.remove(("ns", "a"), last) == (Change(last, None),)
    assert store.by_index("colour", "red") == ()
    assert len(store) == 0


def test_labels_select_within_a_namespace_or_in_all():
    """S11."""
    red, blue = thing("a", 1, labels={"team": "red"}), thing("b", 2, labels={"team": "blue"})
    far = thing("c", 3, namespace="far", labels={"team": "red"})
    store = filled(red, blue, far)
    assert store.list("ns", selector="team=red") == (red,)
    assert store.list(selector="team in (red)") == (red, far)
    assert store.list("far", selector="team!=red") == ()
    with pytest.raises(ValueError, match="not a label selector"):
        store.list(selector="=red")


def test_lookups_look_at_what_they_find_and_at_nothing_else():
    """S11: a lookup by namespace or index value reads no object outside it."""

    class Untouchable:
        @property
        def metadata(self):
            raise AssertionError("a scan")

    inside = thing("a", 1, colour="red")
    store = filled(inside)
    store._objects["other"] = {"x": Untouchable()}  # type: ignore[dict-item]
    store._indexes["colour"]._values["blue"] = {"x": Untouchable()}  # type: ignore[dict-item]
    assert store.list("ns") == store.list("ns", selector="!a") == (inside,)
    assert store.by_index("colour", "red") == (inside,)


def test_several_stores_are_read_as_one():
    """R36: a version is reached when all of them have come so far."""
    here, there = filled(thing("a", 1, colour="red")), filled()
    both: Joined[Thing] = Joined({"ns": here, "far": there})
    away = thing("a", 2, namespace="far", colour="red", labels={"x": "y"})
    there.apply(away)
    assert both.get("far", "a") is away
    assert both.get("elsewhere", "a") is None
    assert both.list() == (*here.list(), away)
    assert both.list("far") == both.list(selector="x=y") == (away,)
    assert both.by_index("colour", "red") == both.list()
    here.advance("9")
    assert both.resource_version == ""
    there.advance("10")
    assert both.resource_version == "9"
    here.has_synced = True
    assert not both.has_synced
    there.has_synced = True
    assert both.has_synced


def test_an_index_function_that_raises_leaves_the_object_stored_and_out_of_that_index():
    """S10: counted once, and the object can be replaced and removed."""
    failures: list[str] = []

    def picky(obj: Thing) -> list[str]:
        if obj.colour == "bad":
            raise ValueError(obj.colour)
        return [obj.colour]

    store: Store[Thing] = Store(
        {"picky": picky}, on_index_error=lambda name, err: failures.append(name)
    )
    bad = thing("a", 1, colour="bad")
    store.apply(bad)
    assert store.get("ns", "a") is bad
    assert failures == ["picky"]
    good = thing("a", 2, colour="good")
    store.apply(good)
    assert store.by_index("picky", "good") == (good,)
    store.remove(good.metadata.key)
    assert store.by_index("picky", "good") == ()
