"""From changes to keys, and which changes count."""

from __future__ import annotations

import pytest

from kaito.informers.handlers import Change, label_keys, own_key, owner_keys
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
    assert owner_keys("k.sh", "Workspace")(Change(None, child)) == []


def test_labels_spell_a_key_in_the_old_state_too():
    keys = label_keys("where", "who")
    before = thing("a", 1, labels={"where": "ns1", "who": "w1"})
    after = thing("a", 2, labels={"who": "w2"})
    assert keys(Change(before, after)) == [("ns1", "w1"), ("", "w2")]
    assert keys(Change(None, thing("a", 1))) == []


def test_a_status_write_is_no_change_of_generation():
    same = Change(thing("a", 1, generation=1), thing("a", 2, generation=1))
    assert not generation_changed(same)
    assert generation_changed(Change(thing("a", 1, generation=1), thing("a", 2, generation=2)))
    assert generation_changed(Change(None, thing("a", 1)))


def test_deletion_starts_once():
    living, dying = thing("a", 1), thing("a", 2, deletionTimestamp="2026-01-01T00:00:00Z")
    assert deletion_started(Change(living, dying))
    assert not deletion_started(Change(dying, dying))
    assert not deletion_started(Change(None, living))
    assert deletion_started(Change(dying, None))


def test_an_event_delivered_twice_changes_no_version():
    assert not resource_version_changed(Change(thing("a", 1), thing("a", 1)))
    assert resource_version_changed(Change(thing("a", 1), thing("a", 2)))
    assert resource_version_changed(Change(thing("a", 1), None))


def test_predicates_compose():
    change = Change(thing("a", 1), thing("a", 2))
    assert any_of(generation_changed, resource_version_changed)(change)
    assert not all_of(generation_changed, resource_version_changed)(change)
    assert negate(generation_changed)(change)
