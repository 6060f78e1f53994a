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


@pytest.mark.parametrize(
    ("live", "desired", "holds"),
    [
        ({"requests": {"cpu": "500m"}}, {"requests": {"cpu": 0.5}}, True),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1024Mi"}}, True),
        ({"limits": {"nvidia.com/gpu": "1"}}, {"limits": {"nvidia.com/gpu": 1}}, True),
        ({"limits": {"nvidia.com/gpu": "2"}}, {"limits": {"nvidia.com/gpu": 1}}, False),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "1G"}}, False),
        ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "much"}}, False),
        ({"emptyDir": {"sizeLimit": "1Gi"}}, {"emptyDir": {"sizeLimit": "1024Mi"}}, True),
        # Text stays as it was sent: a label, an argument, a variable.
        ({"labels": {"version": "1"}}, {"labels": {"version": "1.0"}}, False),
        ({"env": [{"value": "1Gi"}]}, {"env": [{"value": "1024Mi"}]}, False),
        # Left out by the server, and so no difference.
        ({}, {"nodePort": None, "hostNetwork": False, "args": [], "priority": 0, "x": ""}, True),
        ({"hostNetwork": True}, {"hostNetwork": False}, False),
        ({"replicas": 1}, {"replicas": 0}, False),
        ({"configMap": {"name": "c"}}, {"emptyDir": {}}, False),
        # Filled in by the server.
        (
            {"ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "type": "ClusterIP"},
            {"ports": [{"port": 80}]},
            True,
        ),
        ({"ports": [{"port": 81, "protocol": "TCP"}]}, {"ports": [{"port": 80}]}, False),
    ],
)
def test_what_the_server_writes_its_own_way_is_no_drift(live, desired, holds):
    """A20."""
    assert contains(live, desired) is holds


def test_a_manifest_that_lost_a_field_is_not_what_is_there():
    """A7: every leaf that is left is equal, but the hash is another: the field must go."""
    before = with_hash({"metadata": {"name": "a"}, "spec": {"x": 1, "y": 2}})
    after = with_hash({"metadata": {"name": "a"}, "spec": {"x": 1}})
    assert contains(before, before)
    assert contains(before["spec"], after["spec"])
    assert not contains(before, after)


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
