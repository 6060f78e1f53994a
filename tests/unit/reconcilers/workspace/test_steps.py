"""Each step by plain calls; the chain where order matters."""

from __future__ import annotations

import pytest

from kaito import constants
from kaito.reconcilers.actions import Apply, Create, Delete, Patch, RemoveFinalizer
from kaito.reconcilers.chain import decide
from kaito.reconcilers.workspace.naming import claim_name
from kaito.reconcilers.workspace.state import Orphaned
from kaito.reconcilers.workspace.steps.chains import CLEANUP, ORPHANS, STEPS
from kaito.reconcilers.workspace.steps.inference import inference, observed
from kaito.reconcilers.workspace.steps.nodes import nodes
from kaito.reconcilers.workspace.steps.validate import validate
from tests.unit.reconcilers.workspace.builders import (
    FAULT,
    UID,
    asked,
    claim,
    condition,
    deployment,
    node,
    ready_state,
    service,
    state,
    workspace,
)


def written(plan):
    """Short words for what a plan does: verb and kind."""
    out = []
    for a in plan.actions:
        match a:
            case Create(m) | Apply(m):
                out.append(f"{type(a).__name__} {m['kind']}")
            case Patch(ref) | Delete(ref) | RemoveFinalizer(ref):
                out.append(f"{type(a).__name__} {ref.kind}")
    return out


def told(plan):
    return {c.type: (c.status, c.reason) for c in plan.conditions}


def test_the_finalizer_comes_before_anything_is_bought():
    plan = decide(STEPS, state(workspace(finalizers=())))
    assert written(plan) == ["Patch Workspace"]
    assert plan.held_at == "finalizer"
    assert plan.actions[0].body == {"metadata": {"finalizers": [constants.WORKSPACE_FINALIZER]}}


def test_the_finalizer_patch_carries_the_snapshots_version_and_others_finalizers():
    """G12: no write by name alone."""
    patch = decide(STEPS, state(workspace(finalizers=("other/one",)))).actions[0]
    assert (patch.resource_version, patch.ref.uid) == ("10", UID)
    assert patch.body["metadata"]["finalizers"] == ["other/one", constants.WORKSPACE_FINALIZER]


def test_a_fault_buys_nothing_and_says_what_to_do():
    plan = decide(STEPS, state(faults=(FAULT,)))
    assert written(plan) == []
    assert told(plan) == {
        "SpecValid": ("False", "UnknownPreset"),
        "ResourceReady": ("False", "UnknownPreset"),
    }
    assert "Use another." in plan.conditions[1].message


def test_all_faults_are_told_at_once():
    step = validate(state(faults=(FAULT, FAULT)))
    assert step.conditions[0].message.count("There is no preset x.") == 2


def test_a_fault_on_a_workspace_that_owns_a_claim_warns_and_holds_nothing():
    """G19: rules may be newer than the object."""
    plan = decide(STEPS, ready_state(faults=(FAULT,)))
    assert plan.held_at is None
    assert written(plan) == ["Create Service", "Create Deployment"]
    assert told(plan)["SpecValid"] == ("False", "UnknownPreset")
    assert told(plan)["ResourceReady"][0] == "True"


def test_every_missing_node_is_asked_for_at_once_by_post_and_the_chain_holds():
    plan = decide(STEPS, state(workspace(count=3), claims=(claim(1),)))
    assert written(plan) == ["Create Machine", "Create Machine"]
    assert [a.manifest["metadata"]["name"] for a in plan.actions] == [
        claim_name(UID, 0),
        claim_name(UID, 2),
    ]
    assert {a.owner_uid for a in plan.actions} == {UID}
    assert plan.held_at == "nodes"
    assert told(plan)["MachineReady"] == ("Unknown", "CreateMachinePending")
    assert told(plan)["ResourceReady"] == ("False", "WaitingForNodes")
    assert plan.conditions[0].message.startswith("creating 3 machines")


def test_a_slot_that_was_asked_for_waits_and_sets_a_timer():
    """G3: whoever deleted the claim."""
    step = nodes(state(workspace(nodes=(asked(asks=2, ago=10),))))
    assert step.actions == ()
    assert 38 <= step.requeue_after <= 62
    assert "gone, to be asked for again" in step.conditions[1].message


def test_a_node_counts_only_with_its_gpus():
    """Facts 7.5: labelled is not installed."""
    held = nodes(ready_state(nodes=(node(gpus=0),)))
    assert not held.done
    assert held.conditions[1].reason == "WaitingForGpu"
    assert "nvidia.com/gpu" in held.conditions[1].message
    assert nodes(ready_state(nodes=(node(gpus=1),))).done


def test_a_claims_node_gets_the_marks_it_lacks_and_only_those():
    """G2: with the Node's resourceVersion; another Workspace's mark is left alone."""
    bare = nodes(ready_state(nodes=(node(labels={}),))).actions
    assert [(a.ref.name, a.resource_version, a.body["metadata"]["labels"]) for a in bare] == [
        ("aks-0", "7", {"kaito.sh/workspace-uid": UID, "accelerator": "nvidia"})
    ]
    other = {constants.LABEL_WORKSPACE_UID: "another", constants.LABEL_ACCELERATOR: "nvidia"}
    assert nodes(ready_state(nodes=(node(labels=other),))).actions == ()
    assert nodes(ready_state()).actions == ()


def test_the_clouds_refusal_reaches_both_conditions_with_its_remedy():
    failing = (
        condition("LaunchDiagnosis", "True", "QuotaExceeded", "limit 0. Raise it to 6. Attempt 1"),
        condition("MachineLaunched", "False", "LaunchFailed", "all requested …"),
    )
    step = nodes(state(claims=(claim(conditions=failing),)))
    machine, resource = step.conditions
    assert (machine.status, machine.reason) == ("False", "machineFailedCreation")
    assert (resource.status, resource.reason) == ("False", "QuotaExceeded")
    assert resource.message.endswith(": limit 0. Raise it to 6. Attempt 1")
    assert step.actions == ()


def test_a_refusal_is_no_failure_any_more_while_the_next_try_runs():
    """Told with the progress; the Workspace once was failed for the whole of a good creation."""
    trying = (
        condition("LaunchDiagnosis", "True", "QuotaExceeded", "limit 0; the next is under way"),
        condition("MachineLaunched", "Unknown", "Creating", "agent pool ws is Creating"),
    )
    machine, resource = nodes(state(claims=(claim(conditions=trying),))).conditions
    assert (machine.status, machine.reason) == ("Unknown", "CreateMachinePending")
    assert (resource.status, resource.reason) == ("False", "WaitingForNodes")


def test_a_lost_node_is_told_and_no_second_one_is_asked_for():
    """G1: a Node keeps its slot while its claim is there."""
    step = nodes(ready_state(nodes=(node(ready=False),)))
    assert step.actions == ()
    assert [c.reason for c in step.conditions] == ["checkMachineStatusFailed", "NodeNotReady"]


def test_with_a_node_lost_drift_is_still_corrected_and_the_model_is_what_is_observed():
    """G18: nodes hold the first creation of a workload and nothing else."""
    drifted = deployment(spec={"replicas": 5}, serving=False)
    plan = decide(
        STEPS, ready_state(nodes=(node(ready=False),), deployment=drifted, service=service())
    )
    assert written(plan) == ["Apply Deployment"]
    assert told(plan)["ResourceReady"] == ("False", "NodeNotReady")
    assert told(plan)["InferenceReady"] == ("False", "WorkspaceInferencePending")
    serving = decide(
        STEPS, ready_state(nodes=(node(ready=False),), deployment=deployment(), service=service())
    )
    assert told(serving)["InferenceReady"][0] == "True"


def test_no_workload_is_made_before_the_nodes_are_ready():
    """G18."""
    plan = decide(STEPS, ready_state(nodes=(node(ready=False),)))
    assert written(plan) == []
    assert told(plan)["InferenceReady"] == ("False", "WaitingForNodes")


def test_first_writes_are_posts_and_a_settled_workspace_writes_nothing():
    """G13, and zero actions once settled."""
    assert written(decide(STEPS, ready_state())) == ["Create Service", "Create Deployment"]
    settled = ready_state(deployment=deployment(), service=service())
    assert decide(STEPS, settled).actions == ()


@pytest.mark.parametrize(
    "drift", [{"replicas": 2}, {"progressDeadlineSeconds": 600}, {"strategy": {"type": "Recreate"}}]
)
def test_drift_is_applied_to_the_uid_that_was_seen(drift):
    """G12, G13: never by name alone."""
    plan = decide(STEPS, ready_state(deployment=deployment(spec=drift), service=service()))
    assert [(type(a), a.uid) for a in plan.actions] == [(Apply, "uid-Deployment")]


def test_a_label_too_many_in_the_services_selector_is_drift():
    """It would select no pod, although all that we set is there."""
    broken = service()
    broken.body["spec"]["selector"]["x"] = "y"
    plan = decide(STEPS, ready_state(deployment=deployment(), service=broken))
    assert written(plan) == ["Apply Service"]


def test_the_load_balancer_follows_the_annotation():
    ws = workspace(annotations={constants.ANNOTATION_ENABLE_LB: "True"})
    plan = decide(STEPS, ready_state(ws, deployment=deployment(), service=service()))
    assert written(plan) == ["Apply Service"]
    assert plan.actions[0].manifest["spec"]["type"] == "LoadBalancer"


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (deployment(), "WorkspaceInferenceStatusSuccess"),
        (deployment(generation=2, status={"observedGeneration": 1}), "WorkspaceInferencePending"),
        (deployment(status={"updatedReplicas": 0}), "WorkspaceInferencePending"),
        (deployment(status={"availableReplicas": 0}), "WorkspaceInferencePending"),
        (deployment(status={"replicas": 2}), "WorkspaceInferencePending"),
        (
            deployment(
                spec={"replicas": 0},
                status={"replicas": 0, "updatedReplicas": 0, "availableReplicas": 0},
            ),
            "WorkspaceInferencePending",
        ),
        (
            deployment(
                serving=False,
                status={
                    "conditions": [
                        {"type": "Progressing", "status": "False", "message": "too slow"}
                    ]
                },
            ),
            "WorkspaceInferenceStatusFailed",
        ),
    ],
)
def test_inference_is_ready_only_when_the_newest_generation_serves_whole(live, expected):
    assert observed(ready_state(deployment=live)).reason == expected


def test_no_inference_condition_for_a_workspace_that_serves_nothing():
    ws = workspace().model_copy(update={"inference": None})
    assert inference(state(ws)).drops == ("InferenceReady",)
    assert inference(state(ws)).conditions == ()


def test_deleting_stops_the_workload_first_and_asks_for_every_claim_in_the_same_pass():
    """G15: the claims' deletes do not wait for what the workload's answered."""
    s = ready_state(
        workspace(deleting=True),
        claims=(claim(0), claim(1, deleting=True), claim(name="wsold", uid_label=None)),
        deployment=deployment(),
        service=service(),
    )
    plan = decide(CLEANUP, s)
    assert written(plan) == [
        "Delete Deployment",
        "Delete Service",
        "Delete Machine",
        "Delete Machine",
    ]
    assert {a.ref.uid for a in plan.actions} >= {f"uid-{claim_name(UID, 0)}", "uid-wsold"}
    assert plan.held_at == "release_claims"
    assert told(plan)["WorkspaceDeleting"] == ("True", "workspaceDeleted")
    assert told(plan)["InferenceReady"][0] == "False"


def test_the_finalizer_stays_until_the_last_claim_is_gone():
    held = decide(CLEANUP, state(workspace(deleting=True), claims=(claim(deleting=True),)))
    assert held.actions == ()
    gone = decide(CLEANUP, state(workspace(deleting=True)))
    assert written(gone) == ["RemoveFinalizer Workspace"]
    assert (gone.actions[0].index, gone.actions[0].ref.uid) == (0, UID)
    assert decide(CLEANUP, state(workspace(deleting=True, finalizers=()))).actions == ()


def test_nodes_that_were_taken_are_given_back_and_those_of_claims_are_not():
    """G2: released when the Workspace goes."""
    taken = node("own", labels={constants.LABEL_WORKSPACE_UID: UID})
    plan = decide(CLEANUP, state(workspace(deleting=True), nodes=(taken, node("aks-0"))))
    assert [(a.ref.name, a.resource_version, a.body) for a in plan.actions] == [
        ("own", "7", {"metadata": {"labels": {constants.LABEL_WORKSPACE_UID: None}}})
    ]
    assert plan.held_at == "release_nodes"


@pytest.mark.parametrize(
    ("live", "deleted"), [(None, ["dead", "bare"]), (UID, ["dead"]), ("new", ["own", "dead"])]
)
def test_claims_go_unless_the_living_workspace_of_that_name_owns_them(live, deleted):
    claims = (
        claim(name="own"),
        claim(name="dead", uid_label="gone"),
        claim(name="bare", uid_label=None),
        claim(name="going", uid_label="gone", deleting=True),
    )
    plan = decide(ORPHANS, Orphaned(claims, live))
    names = [a.ref.name for a in plan.actions]
    assert sorted(names) == sorted([*deleted, "own"] if live is None else deleted)


def test_the_same_snapshot_gives_the_same_plan():
    s = state(workspace(count=4))
    assert decide(STEPS, s) == decide(STEPS, s)
