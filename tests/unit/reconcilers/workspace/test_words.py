"""What the conditions say, where it once was untrue, twice said or without end."""

from __future__ import annotations

import re

import pytest

from kaito import constants
from kaito.api.meta import ObjectMeta
from kaito.api.validation import Fault, faults
from kaito.catalog import skus
from kaito.clock import rfc3339
from kaito.errors import Forbidden
from kaito.reconcilers import kinds
from kaito.reconcilers.actions import Create
from kaito.reconcilers.chain import decide
from kaito.reconcilers.workspace.naming import claim_name, owns
from kaito.reconcilers.workspace.report import Refusal, report
from kaito.reconcilers.workspace.slots import fill
from kaito.reconcilers.workspace.steps.chains import CLEANUP, STEPS
from kaito.reconcilers.workspace.steps.cleanup import stop_workload
from kaito.reconcilers.workspace.steps.nodes import nodes
from kaito.reconcilers.workspace.steps.validate import validate
from tests.fakes.clock import FakeClock
from tests.unit.reconcilers.workspace.builders import (
    NOW,
    PRESETS,
    UID,
    asked,
    claim,
    condition,
    deployment,
    launched,
    node,
    ready_state,
    service,
    state,
    workspace,
)
from tests.unit.reconcilers.workspace.cluster import Cluster, reconciler

LONG = Fault(
    "resource.instanceType",
    "There is no instance type 'x'.",
    "Use one of: a, b, c, d, e, f, g.",
    "UnsupportedInstanceType",
    "Use one of: a, b.",
)
HUGE = 1_000_000
WS0 = claim_name(UID, 0)


def machine_and_resource(s):
    return tuple(c.message for c in nodes(s).conditions)


def resource(s):
    return machine_and_resource(s)[1]


def told(status):
    return {c["type"]: c["message"] for c in status["conditions"]}


# A limit, enforced before spending --------------------------------------------------------------


async def test_a_million_nodes_hold_no_loop_and_buy_nothing():
    """D5, facts §14: every name was computed, on every pass, and the operator stood still."""
    cluster = Cluster(FakeClock())
    cluster.add_workspace(count=HUGE)
    for _ in range(3):
        await reconciler(cluster).reconcile(("default", "phi"))
    status = cluster.workspace()["status"]
    assert cluster.names(kinds.MACHINES) == []
    assert "nodes" not in status
    reasons = {c["type"]: c["reason"] for c in status["conditions"]}
    assert reasons["SpecValid"] == reasons["ResourceReady"] == "TooManyNodes"
    assert "Use 100 or less." in told(status)["ResourceReady"]


def test_slots_are_bounded_whatever_the_workspace_says():
    """D5: also for one that owns a claim from before the limit (G19)."""
    s = state(workspace(count=HUGE), claims=(claim(0),))
    assert len(fill(s)[0]) == 100
    assert len(report(s, decide(STEPS, s), [])["nodes"]) == 100


def test_a_workspace_over_the_limit_keeps_its_machines_and_gets_no_more():
    """D5, G19."""
    ws = workspace(count=HUGE)
    s = state(ws, claims=(claim(0),), faults=faults(ws, presets=PRESETS, skus=skus.AZURE))
    step = nodes(s)
    assert not [a for a in step.actions if isinstance(a, Create)]
    assert "no more machines are asked for" in step.conditions[1].message
    assert step.requeue_after is None


def test_whose_a_claim_is_takes_no_million_names():
    """D5."""
    stranger = ObjectMeta(name="ws000000000", labels={constants.LABEL_WORKSPACE_UID: "another"})
    assert not owns(UID, 10**12, stranger)


@pytest.mark.parametrize("count", [5, 6, 100])
def test_a_condition_names_five_machines_at_most(count):
    """D5: and says how many more there are."""
    going = tuple(claim(i, deleting=True) for i in range(count))
    empty = tuple(asked(i, ago=1) for i in range(count))
    texts = (
        resource(state(workspace(count=count))),
        resource(state(workspace(count=count), claims=going)),
        resource(state(workspace(count=count, nodes=empty))),
        resource(ready_state(claims=tuple(claim(name=f"ws{i:09}") for i in range(count + 1)))),
        stop_workload(state(workspace(deleting=True), claims=going)).conditions[0].message,
    )
    for text in texts:
        assert len(re.findall(r"ws[0-9a-f]{9}", text)) <= 6  # one of them on its way
        assert (f"and {count - 5} more" in text) is (count > 5)


# What the selector asks --------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [True, False])
def test_keys_of_ours_in_the_selector_are_named_as_not_used(ready):
    """D8c, G7: ours win, and nobody was told."""
    ws = workspace(labels={"apps": "phi", "kaito.sh/workspace": "x", "karpenter.sh/nodepool": "y"})
    s = ready_state(ws) if ready else state(ws)
    step = nodes(s)
    wanted = "Not used of resource.labelSelector: kaito.sh/workspace, karpenter.sh/nodepool"
    assert wanted in step.conditions[1].message
    assert "SpecValid" not in {c.type for c in decide(STEPS, s).conditions}
    assert resource(ready_state()) == "workspace resource is ready"


# How far a machine is ----------------------------------------------------------------------------


def test_a_node_that_is_not_ready_is_not_told_as_one_without_gpus():
    """D8e, 7.5: it said `offers no nvidia.com/gpu yet` of a Node that never turned Ready."""
    joining = launched(node=False)
    s = state(claims=(claim(node="aks-0", conditions=joining),), nodes=(node(ready=False, gpus=0),))
    step = nodes(s)
    assert step.conditions[1].reason == "WaitingForNodes"
    assert f"{WS0} Starting (node aks-0 is not Ready yet)" in step.conditions[1].message
    assert "nvidia.com/gpu" not in step.conditions[1].message
    assert nodes(ready_state(nodes=(node(gpus=0),))).conditions[1].reason == "WaitingForGpu"


def test_a_machine_that_is_being_removed_is_not_told_as_being_created():
    """D8g, G1: `creating 1 machines: ws… Deleting`."""
    machine, text = machine_and_resource(state(claims=(claim(deleting=True),)))
    assert text == f"waiting for machine {WS0} to be gone; it is then asked for again"
    assert machine == "removing 1 machines"


def test_a_node_that_someone_deletes_is_not_told_as_one_that_is_not_ready():
    """D8e."""
    s = ready_state(nodes=(node(deleting=True),))
    assert f"{WS0} Starting (node aks-0 is being deleted)" in resource(s)


def test_a_machine_that_is_gone_is_told_with_the_time_of_its_next_ask():
    """D8g, G3: `Waiting (asked for 2 times and gone)` after one deletion by hand."""
    text = resource(state(workspace(nodes=(asked(asks=2, ago=10),))))
    assert re.fullmatch(rf"machine gone, to be asked for again: {WS0} at 20[0-9T:-]+Z", text)


def test_machines_on_their_way_out_and_to_come_are_told_apart():
    """D8g."""
    ws = workspace(count=3, nodes=(asked(2, ago=1),))
    text = resource(state(ws, claims=(claim(0), claim(1, deleting=True))))
    assert [part.partition(" ")[0] for part in text.split("; ")] == [
        "creating",
        "waiting",
        "it",
        "machine",
    ]


@pytest.mark.parametrize(("lost", "word"), [(True, "has left"), (False, "was Ready before")])
def test_a_node_that_is_lost_is_not_said_to_be_replaced(lost, word):
    """D8d, G8: nothing repairs nodes yet."""
    text = resource(ready_state(nodes=() if lost else (node(ready=False),)))
    assert text.startswith(f"node aks-0 of machine {WS0}: it {word}")
    assert "This release does not replace it" in text


# Going away --------------------------------------------------------------------------------------


def stopped():
    text = "the cluster is stopped. Start the cluster."
    return condition("TerminationDiagnosis", "True", "ClusterStopped", text)


def going():
    return condition("Ready", "False", "Terminating", "agent pool x is being deleted")


def deleting(*conditions):
    s = state(workspace(deleting=True), claims=(claim(deleting=True, conditions=conditions),))
    return decide(CLEANUP, s).conditions[0].message


def test_a_deletion_that_the_cloud_refuses_says_why_and_what_to_do():
    """D8i: the Workspace only said `workspace is being deleted`."""
    assert deleting(going(), stopped()) == (
        "workspace is being deleted; 1 machine is still there:"
        f" {WS0} (the cluster is stopped. Start the cluster)"
    )


def test_what_kept_a_machine_from_being_made_is_no_reason_why_it_stays():
    """D8i: what was told before the deletion, of a quota for example."""
    quota = condition("LaunchDiagnosis", "True", "QuotaExceeded", "limit 0. Raise it.", ago=60)
    before = condition("Ready", "False", "LaunchFailed", "no machine", ago=60)
    assert deleting(quota, going()).endswith(f"{WS0} (agent pool x is being deleted)")
    assert deleting(quota, before).endswith(f"still there: {WS0}")


def test_the_machine_that_the_cloud_refuses_is_named_first():
    """D8i: not hidden behind `and n more`."""
    claims = [claim(name=f"ws{i:09}", deleting=True, conditions=(going(),)) for i in range(9)]
    claims.append(claim(name="wszzzzzzzzz", deleting=True, conditions=(stopped(),)))
    text = stop_workload(state(workspace(deleting=True), claims=tuple(claims)))
    assert "10 machines are still there: wszzzzzzzzz (the cluster" in text.conditions[0].message


def test_a_leftover_that_the_cloud_keeps_is_told_with_its_remedy_once():
    """D8i: it has to go before the machine of a living claim is made."""
    text = "the cluster is stopped. Start the cluster."
    launch = condition("MachineLaunched", "Unknown", "ClusterStopped", text)
    s = state(claims=(claim(conditions=(launch, stopped())),))
    assert resource(s) == f"machine {WS0}: {text}"


def test_a_deletion_without_machines_says_no_more_than_that():
    assert stop_workload(state(workspace(deleting=True))).conditions[0].message == (
        "workspace is being deleted"
    )


def test_a_machine_removed_by_hand_that_the_cloud_keeps_says_why():
    """D8i: the Workspace lives on and waits for its slot."""
    text = resource(state(claims=(claim(deleting=True, conditions=(going(), stopped())),)))
    assert f"{WS0} (the cluster is stopped. Start the cluster) to be gone" in text


# Said once ---------------------------------------------------------------------------------------


def test_a_long_list_stands_in_spec_valid_only():
    """It stood in four conditions in full."""
    s = state(faults=(LONG,))
    texts = told(report(s, decide(STEPS, s), []))
    assert "a, b, c, d" in texts["SpecValid"]
    for type_ in ("ResourceReady", "WorkspaceReady", "WorkspaceSucceeded"):
        assert texts[type_].endswith("There is no instance type 'x'. Use one of: a, b.")


def test_a_fault_on_a_workspace_that_serves_not_yet_is_still_its_reason():
    """G19: it warns; with all nodes well it is the first thing to look at."""
    s = ready_state(faults=(LONG,), deployment=deployment(serving=False), service=service())
    status = report(s, decide(STEPS, s), [])
    ready = next(c for c in status["conditions"] if c["type"] == "WorkspaceReady")
    assert ready["reason"] == "UnsupportedInstanceType"


def test_machine_ready_is_short_and_the_other_three_have_the_whole_text():
    """Four conditions repeated the same long text."""
    quota = (
        condition("LaunchDiagnosis", "True", "QuotaExceeded", "limit 0. Raise it to 6."),
        condition("MachineLaunched", "False", "LaunchFailed", "all requested …"),
    )
    s = state(claims=(claim(conditions=quota),))
    texts = told(report(s, decide(STEPS, s), []))
    assert texts["MachineReady"] == f"machine {WS0}: QuotaExceeded"
    for type_ in ("ResourceReady", "WorkspaceReady", "WorkspaceSucceeded"):
        assert texts[type_] == f"machine {WS0}: limit 0. Raise it to 6."


def test_a_machine_that_could_not_be_asked_for_is_short_in_machine_ready():
    s = state()
    plan = decide(STEPS, s)
    texts = told(report(s, plan, [Refusal(plan.actions[0], Forbidden("no", status=403))]))
    assert texts["MachineReady"] == f"machine {WS0}: Forbidden"
    assert "Grant the right" in texts["ResourceReady"]


def test_a_brief_remedy_is_used_only_where_there_is_one():
    short = Fault("a", "It is b.", "Use c.", "InvalidSpec")
    spec, ready = validate(state(faults=(short, LONG))).conditions
    assert spec.message.splitlines()[0] == ready.message.splitlines()[0] == "a: It is b. Use c."


def test_the_time_of_the_next_ask_does_not_move_from_pass_to_pass():
    """A text that changed on each pass would be a write on each pass."""
    ws = workspace(nodes=(asked(asks=2, ago=10),))
    assert resource(state(ws)) == resource(state(ws, now=NOW + 5))
    assert rfc3339(NOW) not in resource(state(ws))
