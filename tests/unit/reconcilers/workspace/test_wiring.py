"""Which events wake which Workspace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kaito import constants
from kaito.api.meta import ObjectMeta, Owned, OwnerReference
from kaito.api.views import NodeClaim, NodeClaimStatus
from kaito.informers.handlers import Change
from kaito.reconcilers.workspace import wiring
from tests.unit.reconcilers.workspace.builders import UID, node, workspace

LABELS = {
    constants.LABEL_WORKSPACE: "phi",
    constants.LABEL_WORKSPACE_NAMESPACE: "default",
    constants.LABEL_WORKSPACE_UID: UID,
}
KEY = ("default", "phi")


class Cache:
    """An informer with its lister: objects found by any index that files them so."""

    def __init__(self, kind, **options):
        self.kind, self.options, self.objects = kind, options, ()
        self.lister = self

    def by_index(self, index, value):
        function = self.options["indexes"][index]
        return tuple(obj for obj in self.objects if value in function(obj))


class Informers:
    def informer(self, kind, **options):
        return Cache(kind, **options)


class Controller:
    def __init__(self):
        self.watched = {}

    def watch(self, informer, to_keys, *, predicate=None):
        self.watched[informer.kind.plural] = SimpleNamespace(keys=to_keys, predicate=predicate)


@pytest.fixture
def sources():
    return wiring.sources(Informers())


@pytest.fixture
def watched(sources):
    controller = Controller()
    wiring.register(controller, sources)
    return controller.watched


def claim(node_name=""):
    return NodeClaim(
        ObjectMeta(name="ws1", uid="c", labels=LABELS), status=NodeClaimStatus(node_name=node_name)
    )


def test_every_kind_that_a_pass_reads_is_watched(watched):
    assert set(watched) == {
        "workspaces",
        "machines",
        "nodeclaims",
        "nodes",
        "deployments",
        "services",
    }


def test_claims_are_optional_kinds_and_children_are_watched_unfiltered(sources):
    """G13: a filter would hide the original's unlabelled children."""
    assert sources.machines.options["optional"]
    assert sources.nodeclaims.options["optional"]
    assert "label_selector" not in sources.deployments.options


@pytest.mark.parametrize("change", [Change(None, claim()), Change(claim(), None)])
def test_a_claim_wakes_the_workspace_that_its_labels_name(watched, change):
    assert watched["nodeclaims"].keys(change) == [KEY]


def test_a_claim_with_half_the_labels_wakes_who_its_uid_names(sources, watched):
    """G16: with its namespace label taken off it once held a deleted Workspace for ever."""
    sources.workspaces.objects = (workspace(),)
    half = {constants.LABEL_WORKSPACE: "phi"}
    nobodys = NodeClaim(ObjectMeta(name="ws1", labels=half))
    ours = NodeClaim(ObjectMeta(name="ws1", labels={**half, constants.LABEL_WORKSPACE_UID: UID}))
    assert watched["machines"].keys(Change(None, nobodys)) == []
    assert watched["machines"].keys(Change(None, ours)) == [("default", "phi")]


def test_one_namespace_is_watched_when_one_is_set(sources):
    controller = Controller()
    wiring.register(controller, sources, namespace="other")
    assert controller.watched["machines"].keys(Change(None, claim())) == []


def test_a_child_wakes_its_owner(watched):
    owner = OwnerReference(
        api_version="kaito.sh/v1alpha1", kind="Workspace", name="phi", uid=UID, controller=True
    )
    meta = ObjectMeta(name="phi", namespace="default", owner_references=(owner,))
    child = Owned(meta, {})
    assert watched["deployments"].keys(Change(child, None)) == [KEY]
    assert watched["services"].keys(Change(None, child)) == [KEY]


def test_a_node_wakes_its_workspace_by_label_by_uid_and_by_claim(sources, watched):
    keys = watched["nodes"].keys
    assert keys(Change(None, node(labels=LABELS))) == [KEY]
    uid_only = node(labels={constants.LABEL_WORKSPACE_UID: UID})
    assert keys(Change(None, uid_only)) == []
    sources.workspaces.objects = (workspace(),)
    assert keys(Change(None, uid_only)) == [KEY]
    bare = node("aks-9", labels={})
    assert keys(Change(None, bare)) == []
    sources.nodeclaims.objects = (claim("aks-9"),)
    assert keys(Change(None, bare)) == [KEY]


@pytest.mark.parametrize(
    ("new", "wakes"),
    [
        (node(), False),
        (node(ready_ago=50), False),
        (node(ready=False), True),
        (node(gpus=0), True),
        (node(labels={}), True),
        (node(deleting=True), True),
    ],
)
def test_a_nodes_heartbeat_wakes_nobody(watched, new, wakes):
    assert watched["nodes"].predicate(Change(node(), new)) is wakes


def test_a_node_that_comes_or_goes_always_counts(watched):
    assert watched["nodes"].predicate(Change(None, node()))
    assert watched["nodes"].predicate(Change(node(), None))
