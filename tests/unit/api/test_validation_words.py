"""Faults of the selector, and how long what is said of a fault is."""

from __future__ import annotations

import pytest

from tests.unit.api.test_validation import SELECT, found, serving, tuning


@pytest.mark.parametrize(
    "key",
    [
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/instance-type",
        "k8s.io/a",
        "x.k8s.io/a",
        "kubernetes.azure.com/agentpool",
        "a.kubernetes.azure.com/b",
    ],
)
@pytest.mark.parametrize("by_expression", [False, True])
def test_a_label_that_no_new_node_can_get_buys_no_vm(key: str, by_expression: bool) -> None:
    """D8b, P2.2, C7: a VM was bought for kubernetes.io/hostname and no pod ever fitted it."""
    labels = {"matchLabels": {key: "v"}}
    expressions = {"matchExpressions": [{"key": key, "operator": "In", "values": ["v"]}]}
    (fault,) = found(serving(resource={"labelSelector": expressions if by_expression else labels}))
    assert (fault.field, fault.reason) == (SELECT, "InvalidSelector")
    assert f"No new node can get the label {key}" in fault.message


@pytest.mark.parametrize("key", ["notkubernetes.io/a", "azure.com/a", "kubernetes.io.example/a"])
def test_a_label_of_a_domain_that_only_looks_alike_is_good(key: str) -> None:
    assert found(serving(resource={"labelSelector": {"matchLabels": {key: "v"}}})) == ()


def test_a_selector_of_only_our_keys_is_as_empty_as_an_empty_one() -> None:
    """D8c, G7, C7."""
    ours = {"kaito.sh/workspace": "x", "karpenter.sh/nodepool": "y"}
    (fault,) = found(serving(resource={"labelSelector": {"matchLabels": ours}}))
    assert (fault.field, fault.reason) == (SELECT, "InvalidSelector")
    assert "kaito.sh/workspace, karpenter.sh/nodepool" in fault.message


def test_our_keys_beside_a_users_own_are_no_fault() -> None:
    """D8c, G7: ours win, with a warning."""
    both = {"kaito.sh/workspace": "x", "apps": "phi"}
    assert found(serving(resource={"labelSelector": {"matchLabels": both}})) == ()


@pytest.mark.parametrize("name", ["Huge", "Standard_D4s_v5"])
def test_a_long_list_of_instance_types_has_a_brief_form(name: str) -> None:
    """The list of all sizes stood in full in four conditions."""
    (fault,) = found(serving(resource={"instanceType": name}))
    everything = listed(fault.remedy)
    assert len(everything) > 20
    nearest = listed(fault.brief.partition(" SpecValid")[0] or fault.brief)
    assert len(nearest) == 5
    assert set(nearest) < set(everything)
    assert nearest == sorted(nearest)
    assert everything == sorted(everything)


def test_near_names_are_listed_in_order() -> None:
    (fault,) = found(serving("phi-3-mini-instruct"))
    assert listed(fault.remedy) == ["phi-3-mini-128k-instruct", "phi-3-mini-4k-instruct"]
    assert fault.brief == ""


def test_what_cannot_be_done_yet_is_said_once() -> None:
    """It said so in the message and again in the remedy."""
    (fault,) = found(tuning())
    assert str(fault) == (
        "tuning: Tuning cannot be used with this release yet. Use inference.preset."
    )


def listed(remedy: str) -> list[str]:
    return remedy.removeprefix("Use one of: ").rstrip(".").split(", ")
