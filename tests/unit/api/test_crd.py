from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaito.api.crd import CRDS, crd_yaml, documents, machine_crd, workspace_crd
from kaito.api.machine import decode_machine
from kaito.api.workspace import Workspace, decode_workspace

DEPLOY = Path(__file__).parents[3] / "deploy"


def root(crd: Mapping[str, Any]) -> dict[str, Any]:
    return dict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
        yield from fields(child.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("name", CRDS)
def test_the_files_in_deploy_are_up_to_date(name: str) -> None:
    """Run `kaito crds --write deploy/crds` when this fails."""
    assert (DEPLOY / "crds" / f"{name}.yaml").read_text() == crd_yaml(name)


def test_deploy_has_no_other_crds() -> None:
    assert {path.name for path in (DEPLOY / "crds").iterdir()} == set(documents())


@pytest.mark.parametrize("name", CRDS)
def test_the_same_models_give_the_same_bytes(name: str) -> None:
    assert crd_yaml(name) == crd_yaml(name)
    assert yaml.safe_load(crd_yaml(name)) == CRDS[name]()


@pytest.mark.parametrize(
    "crd", [workspace_crd(), machine_crd()], ids=lambda c: c["metadata"]["name"]
)
def test_every_field_has_a_description(crd: Mapping[str, Any]) -> None:
    """`kubectl explain` has text for every field, nested ones too."""
    bare = [
        path
        for path, field in fields(root(crd))
        if path != ".metadata" and not field.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize(
    "crd", [workspace_crd(), machine_crd()], ids=lambda c: c["metadata"]["name"]
)
def test_the_schema_is_structural(crd: Mapping[str, Any]) -> None:
    for path, field in fields(root(crd)):
        assert "$ref" not in field, path
        assert field.get("type") or field.get("x-kubernetes-int-or-string"), path
        assert field.get("type") != "array" or "items" in field, path


@pytest.mark.parametrize(
    "crd", [workspace_crd(), machine_crd()], ids=lambda c: c["metadata"]["name"]
)
def test_nothing_is_required_at_the_top(crd: Mapping[str, Any]) -> None:
    assert "required" not in root(crd)
    assert crd["spec"]["versions"][0]["subresources"] == {"status": {}}


def test_a_workspace_has_no_spec_and_three_defaults() -> None:
    """Facts §2, §6: another default would change the revision hash of every old object."""
    schema = root(workspace_crd())
    assert set(schema["properties"]) == {
        "apiVersion",
        "kind",
        "metadata",
        "resource",
        "inference",
        "tuning",
        "status",
    }
    defaults = {path: field["default"] for path, field in fields(schema) if "default" in field}
    assert defaults == {
        ".resource.count": 1,
        ".resource.instanceType": "Standard_NC12s_v3",
        ".inference.preset.accessMode": "public",
        ".tuning.preset.accessMode": "public",
    }


def test_a_workspace_requires_what_the_original_required() -> None:
    required = {
        path: tuple(field["required"])
        for path, field in fields(root(workspace_crd()))
        if "required" in field and not path.startswith(".status")
    }
    assert required == {
        ".resource": ("labelSelector",),
        ".inference.preset": ("name",),
        ".tuning": ("input", "output"),
        ".tuning.preset": ("name",),
    }


def test_columns_are_those_of_the_design() -> None:
    """design.md §6; facts P1.3."""

    def columns(crd: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        found = crd["spec"]["versions"][0]["additionalPrinterColumns"]
        narrow = [c["name"] for c in found if not c.get("priority")]
        return narrow, [c["name"] for c in found if c.get("priority")]

    assert columns(workspace_crd()) == (
        ["Instance", "ResourceReady", "InferenceReady", "JobStarted", "WorkspaceReady", "Age"],
        ["WorkspaceSucceeded", "State", "Nodes", "Endpoint"],
    )
    assert columns(machine_crd()) == (
        ["Type", "Zone", "Node", "Ready", "Age"],
        ["Capacity", "Provisioner", "Template"],
    )


def test_names_are_the_originals() -> None:
    names = workspace_crd()["spec"]["names"]
    assert names["shortNames"] == ["wk", "wks"]
    assert names["categories"] == ["workspace"]
    assert machine_crd()["spec"]["scope"] == "Cluster"


def test_a_rule_of_a_type_and_one_of_the_field_both_stand() -> None:
    rules = root(workspace_crd())["properties"]["tuning"]["properties"]["input"]
    messages = [rule["message"] for rule in rules["x-kubernetes-validations"]]
    assert len(messages) == 3
    assert any("immutable" in message for message in messages)
    assert any("exactly one" in message for message in messages)


def test_decoders_read_every_section_the_schema_has() -> None:
    assert isinstance(decode_workspace(b'{"metadata":{"name":"w"}}'), Workspace)
    sections = set(Workspace.model_fields) - {"metadata"}
    raw = '{"metadata":{"name":"w"},%s}'
    for section in sections:
        broken = decode_workspace((raw % f'"{section}":1').encode())
        assert section in getattr(broken, "error", "")
    broken = decode_machine((raw % '"spec":1').encode())
    assert "spec" in getattr(broken, "error", "")
