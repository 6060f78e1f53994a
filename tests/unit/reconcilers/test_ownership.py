import pytest

from kaito.api.meta import ObjectMeta, OwnerReference
from kaito.reconcilers.ownership import belongs_to, contains, owner_reference, with_hash


@pytest.mark.parametrize(
    ("live", "desired", "holds"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, True),
        ({"l": [{"n": "c", "defaulted": True}]}, {"l": [{"n": "c"}]}, True),
        ({"l": [{"n": "c"}, {"n": "sidecar"}]}, {"l": [{"n": "c"}]}, False),
        ({"l": ["a"]}, {"l": ["b"]}, False),
        ({"s": "abc"}, {"s": "abc"}, True),
        ({"s": "abc"}, {"s": ["a", "b", "c"]}, False),
        ({}, {"n": None}, True),
        ({"n": 1}, {"n": None}, False),
        ("x", {"a": 1}, False),
        ({"f": False}, {"f": False}, True),
    ],
)
def test_drift_is_a_leaf_of_ours_that_differs(live, desired, holds):
    """A7: defaults and fields of others are no drift."""
    assert contains(live, desired) is holds


def test_the_hash_follows_the_content_and_keeps_other_annotations():
    one = with_hash({"metadata": {"name": "a", "annotations": {"k": "v"}}, "spec": {"x": 1}})
    same = with_hash({"spec": {"x": 1}, "metadata": {"annotations": {"k": "v"}, "name": "a"}})
    other = with_hash({"metadata": {"name": "a", "annotations": {"k": "v"}}, "spec": {"x": 2}})
    key = "kaito.sh/manifest-hash"
    assert one["metadata"]["annotations"]["k"] == "v"
    assert one["metadata"]["annotations"][key] == same["metadata"]["annotations"][key]
    assert one["metadata"]["annotations"][key] != other["metadata"]["annotations"][key]


def test_ours_is_what_the_controller_reference_or_the_label_says():
    """G13, and design: a claim can have no owner reference to a Workspace."""
    child = ObjectMeta(owner_references=(OwnerReference(uid="u", controller=True),))
    bystander = ObjectMeta(owner_references=(OwnerReference(uid="u"),))
    claim = ObjectMeta(labels={"kaito.sh/workspace-uid": "u"})
    assert belongs_to(child, "u")
    assert belongs_to(claim, "u")
    assert not belongs_to(bystander, "u")
    reference = owner_reference("kaito.sh/v1alpha1", "Workspace", ObjectMeta(name="w", uid="u"))
    assert reference["controller"] is True
    assert reference["uid"] == "u"
