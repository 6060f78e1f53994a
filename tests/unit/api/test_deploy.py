"""What `kubectl apply -k deploy` installs, held against what the code uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito.kube.resources import Kind
from kaito.reconcilers import kinds

DEPLOY = Path(__file__).parents[3] / "deploy"
READ = {"get", "list", "watch"}


def named(value: object) -> str:
    """The same id in every process: a set has no order."""
    return "+".join(sorted(value)) if isinstance(value, set) else str(value)


MANAGE = READ | {"create", "patch", "delete"}


def documents() -> Iterator[dict[str, Any]]:
    for path in DEPLOY.rglob("*.yaml"):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def one(kind: str, name: str) -> dict[str, Any]:
    (found,) = (d for d in documents() if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def verbs(role: str, kind: Kind[Any], subresource: str = "") -> set[str]:
    resource = kind.plural + (f"/{subresource}" if subresource else "")
    return {
        verb
        for rule in one("ClusterRole", role)["rules"]
        if kind.group in rule["apiGroups"] and resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_everything_in_the_folder_is_installed() -> None:
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())["resources"]
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*.yaml")}
    assert set(listed) == files - {"kustomization.yaml"}


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        (kinds.WORKSPACES, READ | {"patch"}),
        (kinds.MACHINES, READ | {"create", "delete"}),
        (kinds.NODECLAIMS, READ | {"create", "delete"}),
        (kinds.NODES, READ | {"patch"}),
        (kinds.PODS, READ),
        (kinds.SERVICES, MANAGE),
        (kinds.DEPLOYMENTS, MANAGE),
    ],
    ids=named,
)
def test_the_workspace_side_may_do_what_it_does_and_no_more(
    kind: Kind[Any], needed: set[str]
) -> None:
    """Facts §12."""
    assert verbs("kaito-workspace", kind) == needed


@pytest.mark.parametrize(
    ("kind", "subresource", "needed"),
    [
        (kinds.MACHINES, "", READ | {"patch", "delete"}),
        (kinds.MACHINES, "status", {"patch"}),
        (kinds.MACHINES, "finalizers", {"update"}),
        (kinds.NODECLAIMS, "", READ | {"patch", "delete"}),
        (kinds.NODECLAIMS, "status", {"patch"}),
        (kinds.NODES, "", READ | {"patch", "delete"}),
        (kinds.PODS, "", READ | {"delete"}),
        (kinds.PODS, "eviction", {"create"}),
        (kinds.WORKSPACES, "", set()),
        (kinds.DEPLOYMENTS, "", set()),
    ],
    ids=named,
)
def test_the_node_side_may_do_what_it_does_and_no_more(
    kind: Kind[Any], subresource: str, needed: set[str]
) -> None:
    """P8.6."""
    assert verbs("kaito-machine", kind, subresource) == needed


def test_no_role_is_wider_than_its_words() -> None:
    for role in (d for d in documents() if d["kind"] in ("ClusterRole", "Role")):
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "secrets" not in rule["resources"]


@pytest.mark.parametrize("side", ["workspace", "machine"])
def test_each_side_runs_alone_under_its_own_account(side: str) -> None:
    """design.md §6: cloud credentials stay with the node side."""
    pod = one("Deployment", f"kaito-{side}")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["args"] == ["operator", f"--controllers={side}"]
    assert pod["spec"]["serviceAccountName"] == f"kaito-{side}"
    assert one("ServiceAccount", f"kaito-{side}")
    assert one("ClusterRoleBinding", f"kaito-{side}")["roleRef"]["name"] == f"kaito-{side}"
    assert ("envFrom" in container) == (side == "machine")
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
