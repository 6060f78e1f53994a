"""From changes to keys, and which changes count."""

from __future__ import annotations

import pytest

from kaito.informers.handlers import Change, own_key, owner_keys
from kaito.informers.predicates import (
    all_of,
    any_of,
    deletion_started,
    generation_changed,
    negate,
    resource_version_changed,
)
from tests.unit.informers.fake import thing


def owned_by(name: str, *, kind: str = "Workspace", controller: bool = True, group: str = "k.sh"):
    owner = {"apiVersion": f"{group}/v1", "kind": kind, "name": name, "controller": controller}
    return thing("child", 1, ownerReferences=[owner])


def test_a_change_shows_its_newest_state():
    old, new = thing("a", 1), thing("a", 2)
    assert Change(old, new).obj is new
    assert Change(old, None).obj is old


def test_an_object_is_its_own_key():
    assert own_key(Change(None, thing("a", 1))) == [("ns", "a")]


def test_a_child_that_changed_hands_wakes_both_owners():
    """C16, C17: of old and new, each once."""
    keys = owner_keys("k.sh", "Workspace")
    assert keys(Change(owned_by("w1"), owned_by("w2"))) == [("ns", "w1"), ("ns", "w2")]
    assert keys(Change(owned_by("w1"), owned_by("w1"))) == [("ns", "w1")]
    assert keys(Change(owned_by("w1"), None)) == [("ns", "w1")]


@pytest.mark.parametrize(
    "child",
    [
        owned_by("w", kind="Other"),
        owned_by("w", controller=False),
        owned_by("w", group="other.sh"),
        thing("child", 1),
    ],
)
def test_only_the_controlling_owner_of_that_kind_is_woken(child):
    """C16, C17: by group and kind; nobody otherwise."""
    assert owner_keys("k.sh", "Workspace")(Change(None, child)) == []


def test_an_owner_of_another_version_is_still_the_owner():
    """C16."""
    owner = {"apiVersion": "k.sh/v9alpha1", "kind": "Workspace", "name": "w", "controller": True}
    child = thing("child", 1, ownerReferences=[owner])
    assert owner_keys("k.sh", "Workspace")(Change(None, child)) == [("ns", "w")]
    core = thing("child", 1, ownerReferences=[{**owner, "apiVersion": "v1", "kind": "Node"}])
    assert owner_keys("", "Node", namespaced=False)(Change(None, core)) == [("", "w")]


def test_owners_that_do_not_control_are_woken_where_that_is_asked_for():
    """C16: each once, of both states."""
    keys = owner_keys("k.sh", "Workspace", controller_only=False)
    owners = [
        {"apiVersion": "k.sh/v1", "kind": "Workspace", "name": name, "controller": name == "w1"}
        for name in ("w1", "w2")
    ]
    before = thing("child", 1, ownerReferences=owners)
    after = thing("child", 2, ownerReferences=owners[:1])
    assert keys(Change(before, after)) == [("ns", "w1"), ("ns", "w2")]


def test_an_owner_that_is_in_no_namespace_has_none_in_its_key():
    """C16."""
    keys = owner_keys("k.sh", "Workspace", namespaced=False)
    assert keys(Change(None, owned_by("w"))) == [("", "w")]


def test_a_status_write_is_no_change_of_generation():
    """C14: nor one of labels, annotations or finalizers; any add or deletion counts."""
    same = Change(thing("a", 1, generation=1), thing("a", 2, generation=1))
    assert not generation_changed(same)
    assert generation_changed(Change(thing("a", 1, generation=1), thing("a", 2, generation=2)))
    assert generation_changed(Change(None, thing("a", 1)))


def test_another_object_of_the_same_generation_and_version_passes_every_predicate():
    """C14, C15: the second life of a name."""
    again = Change(
        thing("a", 1, uid="1", generation=1, deletionTimestamp="2026-01-01T00:00:00Z"),
        thing("a", 1, uid="2", generation=1, deletionTimestamp="2026-01-02T00:00:00Z"),
    )
    assert generation_changed(again)
    assert resource_version_changed(again)
    assert deletion_started(again)


def test_labels_annotations_and_finalizers_are_no_generation():
    """C14."""
    before = thing("a", 1, generation=3)
    for more in ({"labels": {"a": "b"}}, {"annotations": {"a": "b"}}, {"finalizers": ["a/b"]}):
        assert not generation_changed(Change(before, thing("a", 2, generation=3, **more)))


def test_deletion_starts_once():
    """C14."""
    living, dying = thing("a", 1), thing("a", 2, deletionTimestamp="2026-01-01T00:00:00Z")
    assert deletion_started(Change(living, dying))
    assert not deletion_started(Change(dying, dying))
    assert not deletion_started(Change(None, living))
    assert deletion_started(Change(dying, None))


def test_an_event_delivered_twice_changes_no_version():
    """C15: nor does a resync."""
    same = thing("a", 1)
    assert not resource_version_changed(Change(same, same))
    assert not resource_version_changed(Change(thing("a", 1), thing("a", 1)))
    assert resource_version_changed(Change(thing("a", 1), thing("a", 2)))
    assert resource_version_changed(Change(thing("a", 1), None))


def test_predicates_compose():
    """C13: of old and new."""
    change = Change(thing("a", 1), thing("a", 2))
    assert any_of(generation_changed, resource_version_changed)(change)
    assert not all_of(generation_changed, resource_version_changed)(change)
    assert negate(generation_changed)(change)
