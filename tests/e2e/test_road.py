"""What a user does, by kubectl alone."""

from __future__ import annotations

import json
import random
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.driver import Sandbox, workspace

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e")]

EXAMPLE = Path(__file__).parents[2] / "examples" / "inference" / "kaito_workspace_phi_3.yaml"
NAME = "workspace-phi-3-mini"


def test_the_example_becomes_ready_tells_its_story_and_leaves_nothing(sandbox: Sandbox) -> None:
    before = len(sandbox.ledger()["vms"])
    with sandbox.operator():
        sandbox.kubectl("apply", "-f", str(EXAMPLE))
        for condition in (
            "ResourceReady",
            "InferenceReady",
            "WorkspaceReady",
            "WorkspaceSucceeded",
        ):
            sandbox.kubectl(
                "wait", f"--for=condition={condition}", f"workspace/{NAME}", "--timeout=90s"
            )

        table = sandbox.kubectl("get", "workspace", NAME).splitlines()
        assert table[0].split() == [
            "NAME",
            "INSTANCE",
            "RESOURCEREADY",
            "INFERENCEREADY",
            "JOBSTARTED",
            "WORKSPACEREADY",
            "AGE",
        ]
        assert table[1].split()[:5] == [NAME, "Standard_NC6s_v3", "True", "True", "True"]

        ports = sandbox.get("service", NAME)["spec"]["ports"]
        assert sorted(p["port"] for p in ports) == [80, 29500]
        deployment = sandbox.get("deployment", NAME)
        assert deployment["status"]["availableReplicas"] == 1

        story = sandbox.kubectl("describe", "workspace", NAME)
        events = story.partition("Events:")[2]
        for word in ("Machine", "node", "Deployment", "Inference"):
            assert word.lower() in events.lower(), f"{word} is not in the story:\n{events}"
        machine = sandbox.get("machines")["items"][0]["metadata"]["name"]
        assert "Launched" in sandbox.kubectl("describe", "machine", machine)

        sandbox.kubectl("delete", "workspace", NAME, "--timeout=90s")
        sandbox.settled_without_vms()
    ledger = sandbox.ledger()
    assert len(ledger["vms"]) == before + 1
    assert ledger["peak"] == 1


def test_kubectl_explain_has_text_for_every_field(sandbox: Sandbox) -> None:
    for path in (
        "workspace",
        "workspace.resource",
        "workspace.inference.preset",
        "workspace.status",
    ):
        text = sandbox.kubectl("explain", path)
        fields = re.split(r"^  (?=\w+\t<)", text.partition("FIELDS:")[2], flags=re.M)[1:]
        assert fields
        for field in fields:
            name, *lines = field.splitlines()
            if path == "workspace" and name.split()[0] in ("apiVersion", "kind", "metadata"):
                continue
            text = " ".join(lines).strip()
            assert text, f"{path}: no text for {name}"
            assert "<no description>" not in text


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "unknown-preset",
            {"inference": {"preset": {"name": "phi-3-mini-128k-instuct"}}},
            ("phi-3-mini-128k-instuct", "phi-3-mini-128k-instruct"),
        ),
        (
            "bad-size",
            {
                "resource": {
                    "instanceType": "Standard_X1",
                    "labelSelector": {"matchLabels": {"a": "b"}},
                }
            },
            ("Standard_X1", "resource.instanceType"),
        ),
        (
            "empty-selector",
            {"resource": {"instanceType": "Standard_NC6s_v3", "labelSelector": {}}},
            ("labelSelector",),
        ),
    ],
)
def test_a_wrong_workspace_says_what_to_do_and_costs_nothing(
    sandbox: Sandbox, name: str, changes: dict[str, object], words: tuple[str, ...]
) -> None:
    ordered = sandbox.ledger()["calls"]["put"]
    with sandbox.operator():
        sandbox.kubectl("apply", "-f", "-", stdin=workspace(name, **changes))
        said = sandbox.until(
            "a condition that refuses it",
            lambda: (c := sandbox.condition(name, "ResourceReady")).get("status") == "False" and c,
        )
        for word in words:
            assert word in said["message"]
        assert said["reason"]
        assert sandbox.condition(name, "WorkspaceReady")["status"] == "False"
        sandbox.kubectl("delete", "workspace", name, "--timeout=60s")
    assert sandbox.get("machines")["items"] == []
    assert sandbox.ledger()["calls"]["put"] == ordered


def test_a_workspace_without_selector_is_refused_by_the_schema(sandbox: Sandbox) -> None:
    refused = sandbox.kubectl(
        "apply", "-f", "-", stdin=workspace("w", resource={"count": 1}), check=False
    )
    assert "resource.labelSelector" in refused
    assert "Required value" in refused


def test_a_claim_that_a_delayed_create_wrote_for_a_workspace_that_is_gone_is_deleted(
    sandbox: Sandbox,
) -> None:
    orphan = {
        "apiVersion": "karpenter.sh/v1alpha5",
        "kind": "Machine",
        "metadata": {
            "name": "ws0123456789"[:11],
            "labels": {
                "kaito.sh/workspace": "gone",
                "kaito.sh/workspacenamespace": "default",
                "kaito.sh/workspace-uid": "8e5ff9d8-0000-0000-0000-000000000000",
                "karpenter.sh/provisioner-name": "default",
            },
        },
        "spec": {
            "machineTemplateRef": {"name": "ws012345678"},
            "requirements": [
                {
                    "key": "node.kubernetes.io/instance-type",
                    "operator": "In",
                    "values": ["Standard_NC6s_v3"],
                }
            ],
            "resources": {"requests": {"storage": "50Gi"}},
            "taints": [{"key": "sku", "value": "gpu", "effect": "NoSchedule"}],
        },
    }
    # The node side alone first: the VM is really there when the Workspace side finds the claim.
    with sandbox.operator("--controllers=machine"):
        sandbox.kubectl("create", "-f", "-", stdin=json.dumps(orphan))
        sandbox.until("its VM", lambda: sandbox.ledger()["live"] == 1)
    with sandbox.operator():
        sandbox.settled_without_vms()


def test_no_quota_is_said_spaced_out_and_healed_by_raising_it(sandbox: Sandbox) -> None:
    puts = sandbox.ledger()["calls"]["put"]
    sandbox.script(quota={"standardNCSv3Family": 0})
    with sandbox.operator():
        sandbox.kubectl("apply", "-f", "-", stdin=workspace("quota"))
        said = sandbox.until(
            "the cause in the Workspace's condition",
            lambda: (
                "quota"
                in (c := sandbox.condition("quota", "ResourceReady")).get("message", "").lower()
                and c
            ),
        )
        assert said["status"] != "True"
        sandbox.until("a second try", lambda: sandbox.ledger()["calls"]["put"] >= puts + 2)
        assert sandbox.ledger()["live"] == 0
        assert len(sandbox.get("machines")["items"]) == 1
        sandbox.script()
        sandbox.kubectl(
            "wait", "--for=condition=InferenceReady", "workspace/quota", "--timeout=90s"
        )
        assert sandbox.ledger()["live"] == 1
        sandbox.kubectl("delete", "workspace", "quota", "--timeout=90s")
        sandbox.settled_without_vms()


def test_killed_ten_times_at_random_moments_it_ends_the_same_with_one_vm(sandbox: Sandbox) -> None:
    """kill -9 between any two of its calls: never a second VM, none forgotten."""
    chance = random.Random(20261124)
    bought = len(sandbox.ledger()["vms"])
    ordered = sandbox.ledger()["peak"]
    assert ordered <= 1
    sandbox.script(latency={"create": 4, "join": 2, "ready": 2, "delete": 2, "pod": 1})
    operator = sandbox.start_operator("--no-leader-elect")
    try:
        sandbox.kubectl("apply", "-f", "-", stdin=workspace("killed"))
        for kill in range(10):
            if kill == 6:
                sandbox.kubectl(
                    "wait", "--for=condition=InferenceReady", "workspace/killed", "--timeout=90s"
                )
                sandbox.kubectl("delete", "workspace", "killed", "--wait=false")
            _watch_for(sandbox, chance.uniform(0.3, 3.0))
            operator.send_signal(signal.SIGKILL)
            operator.wait()
            operator = sandbox.start_operator("--no-leader-elect")
        sandbox.until(
            "the Workspace gone", lambda: "killed" not in sandbox.kubectl("get", "workspace")
        )
        sandbox.settled_without_vms()
    finally:
        operator.send_signal(signal.SIGTERM)
        operator.wait(timeout=40)
        sandbox.script()
    ledger = sandbox.ledger()
    assert ledger["peak"] == 1
    assert len(ledger["vms"]) == bought + 1


def _watch_for(sandbox: Sandbox, seconds: float) -> None:
    """Let the operator work for a while: the moment of the kill is the test's input."""
    sandbox.kubectl("get", "events", "--watch", f"--request-timeout={seconds:.2f}s", check=False)
