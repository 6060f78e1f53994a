"""One status per pass, what of it is written, and the Events that tell of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kaito.api.meta import ConditionView
from kaito.clock import rfc3339
from kaito.errors import Conflict, Forbidden, NameTaken, TransportError
from kaito.reconcilers.actions import Create
from kaito.reconcilers.chain import decide
from kaito.reconcilers.workspace.naming import claim_name
from kaito.reconcilers.workspace.report import Refusal, changes, events, report
from kaito.reconcilers.workspace.steps.chains import CLEANUP, STEPS
from tests.unit.reconcilers.workspace.builders import (
    FAULT,
    NOW,
    UID,
    asked,
    claim,
    deployment,
    node,
    ready_state,
    service,
    state,
    workspace,
)


def told(s, *, chain=STEPS, error=None):
    plan = decide(chain, s)
    refused = [Refusal(a, error) for a in plan.actions if isinstance(a, Create)] if error else []
    return report(s, plan, refused)


def condition(status, type_):
    return next(c for c in status["conditions"] if c["type"] == type_)


def after(status):
    """The Workspace that shows this status."""
    views = tuple(
        ConditionView(
            type=c["type"],
            status=c["status"],
            reason=c["reason"],
            message=c["message"],
            last_transition_time=c["lastTransitionTime"],
            observed_generation=c["observedGeneration"],
        )
        for c in status["conditions"]
    )
    base = workspace()
    known = {k: v for k, v in status.items() if k != "conditions"}
    read = type(base.status).model_validate(known)
    return base.model_copy(update={"status": read.model_copy(update={"conditions": views})})


def test_the_pass_that_asks_for_a_node_records_the_ask():
    """G3: slot, claim, instance type, asks and time in the same pass."""
    status = told(state())
    assert status["nodes"] == [
        {
            "slot": 0,
            "claim": claim_name(UID, 0),
            "instanceType": "Standard_NC6s_v3",
            "phase": "Requested",
            "asks": 1,
            "lastAsked": rfc3339(NOW),
        }
    ]
    assert status["targetNodeCount"] == 1
    assert status["state"] == "Pending"
    assert "JobStarted" not in {c["type"] for c in status["conditions"]}


def test_a_pass_whose_ask_was_held_back_records_none():
    status = told(state(workspace(finalizers=())))
    assert "asks" not in status["nodes"][0]


@pytest.mark.parametrize(
    ("error", "asks"),
    [
        (Forbidden("no", status=403), None),
        (Conflict("gone"), None),
        (NameTaken("a stranger's"), None),
        (TransportError("cut"), 1),
    ],
)
def test_an_ask_that_was_surely_refused_does_not_count(error, asks):
    """G3: an unknown outcome counts, a refusal does not: its own retry says when."""
    assert told(state(), error=error)["nodes"][0].get("asks") == asks


def test_a_refusal_is_told_in_the_condition_it_belongs_to():
    status = told(state(), error=Forbidden("machines is forbidden", status=403))
    assert condition(status, "MachineReady")["reason"] == "machineFailedCreation"
    assert condition(status, "ResourceReady")["reason"] == "Forbidden"
    assert "Grant the right" in condition(status, "ResourceReady")["message"]
    assert condition(status, "WorkspaceSucceeded")["reason"] == "workspaceFailed"
    taken = told(ready_state(), error=NameTaken("Deployment default/phi is another's"))
    assert condition(taken, "InferenceReady")["reason"] == "WorkspaceInferenceStatusFailed"


def test_a_passing_trouble_is_not_told():
    """A 409 or a cut connection is looked at again: no condition flaps for it."""
    quiet = told(state(), error=TransportError("cut"))
    assert condition(quiet, "ResourceReady")["reason"] == "WaitingForNodes"
    assert condition(quiet, "WorkspaceSucceeded")["reason"] == "workspacePending"


def test_a_refused_correction_takes_nothing_from_what_is_observed_to_serve():
    s = ready_state(deployment=deployment(spec={"progressDeadlineSeconds": 1}), service=service())
    plan = decide(STEPS, s)
    status = report(s, plan, [Refusal(plan.actions[0], Forbidden("no", status=403))])
    assert condition(status, "InferenceReady")["status"] == "True"
    assert condition(status, "WorkspaceReady")["status"] == "True"


def test_a_serving_workspace_is_ready_succeeded_and_has_an_endpoint():
    status = told(ready_state(deployment=deployment(), service=service()))
    ready = {c["type"]: c["status"] for c in status["conditions"]}
    assert ready == {
        "InferenceReady": "True",
        "MachineReady": "True",
        "ResourceReady": "True",
        "WorkspaceReady": "True",
        "WorkspaceSucceeded": "True",
    }
    assert status["endpoint"] == "http://phi.default.svc"
    assert status["workerNodes"] == ["aks-0"]
    assert status["state"] == "Ready"
    assert status["observedGeneration"] == 1
    public = told(ready_state(deployment=deployment(), service=service(address="20.1.2.3")))
    assert public["endpoint"] == "http://20.1.2.3"


def test_without_a_service_it_is_not_usable():
    status = told(ready_state(deployment=deployment()))
    assert condition(status, "WorkspaceReady")["status"] == "False"


def test_the_state_falls_to_not_ready_only_after_it_was_ready():
    held = ready_state(workspace(state="Ready"), deployment=deployment(serving=False))
    assert told(held)["state"] == "NotReady"
    assert told(ready_state(deployment=deployment(serving=False)))["state"] == "Pending"


def test_a_held_chain_still_tells_everything():
    """G18."""
    status = told(state(faults=(FAULT,)))
    assert condition(status, "WorkspaceSucceeded")["reason"] == "workspaceFailed"
    assert condition(status, "WorkspaceReady")["reason"] == "UnknownPreset"
    assert "nodes" not in status


def test_a_deletion_is_told():
    status = told(ready_state(workspace(deleting=True)), chain=CLEANUP)
    assert condition(status, "WorkspaceDeleting")["status"] == "True"
    assert condition(status, "WorkspaceReady")["reason"] == "workspaceDeleted"


def test_only_what_changed_is_written_and_nothing_the_second_time():
    s = ready_state(deployment=deployment(), service=service())
    status = told(s)
    seen = after(status)
    again = ready_state(seen, deployment=deployment(), service=service(), now=NOW + 30)
    assert changes(seen.status, told(again)) == {}
    lost = ready_state(seen, nodes=(node(ready=False),), deployment=deployment(), service=service())
    assert set(changes(seen.status, told(lost))) == {"conditions", "nodes"}


def test_what_is_no_more_is_taken_out():
    seen = after(told(ready_state(deployment=deployment(), service=service())))
    patch = changes(seen.status, told(state(seen)))
    assert (patch["endpoint"], patch["workerNodes"]) == (None, None)


def test_the_ask_of_a_slot_survives_its_node_coming_up():
    ws = workspace(nodes=(asked(asks=2, ago=30),))
    s = ready_state(ws, claims=(claim(node="aks-0", age=29),))
    assert told(s)["nodes"][0]["asks"] == 2
    assert told(s)["nodes"][0]["phase"] == "Ready"


def test_events_tell_the_story_once():
    """V8: transitions only, none on a settled object."""
    story = [
        state(workspace(finalizers=())),
        state(),
        state(claims=(claim(),)),
        ready_state(),
        ready_state(deployment=deployment(serving=False), service=service()),
        ready_state(deployment=deployment(), service=service()),
        ready_state(deployment=deployment(), service=service()),
    ]
    seen, told_events = workspace(), []
    for s in story:
        current = s.workspace.model_copy(update={"status": seen.status})
        status = told(replace(s, workspace=current))
        new = events(seen.status.conditions, status["conditions"])
        told_events.append([(e.type, e.reason) for e in new])
        seen = after(status)
    assert told_events == [
        [("Normal", "WaitingForNodes")],
        [],
        [],
        [("Normal", "workspaceResourceStatusSuccess"), ("Normal", "WorkspaceInferencePending")],
        [],
        [("Normal", "WorkspaceInferenceStatusSuccess")],
        [],
    ]


def test_faults_and_deletion_are_events_too():
    refused = told(state(faults=(FAULT,)))
    assert [(e.type, e.reason) for e in events((), refused["conditions"])] == [
        ("Warning", "UnknownPreset")
    ]
    going = told(state(workspace(deleting=True)), chain=CLEANUP)
    assert [(e.type, e.reason) for e in events((), going["conditions"])] == [
        ("Normal", "workspaceDeleted")
    ]
