"""The CustomResourceDefinitions, generated from the models: ``deploy/crds`` holds this output.

Deterministic: the same models give the same bytes. Nothing that runs in a cluster imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from kaito.api.machine import Machine
from kaito.api.schema import Model, structural
from kaito.api.workspace import Workspace
from kaito.constants import GROUP, MACHINE_API_VERSION, WORKSPACE_API_VERSION

_API_VERSION: Final = {
    "type": "string",
    "description": "Version of the schema that this object is written in.",
}
_KIND: Final = {"type": "string", "description": "Kind of this object."}


def workspace_crd() -> dict[str, Any]:
    """``workspaces.kaito.sh``."""
    return _crd(
        Workspace,
        api_version=WORKSPACE_API_VERSION,
        names={
            "kind": "Workspace",
            "listKind": "WorkspaceList",
            "plural": "workspaces",
            "singular": "workspace",
            "shortNames": ["wk", "wks"],
            "categories": ["workspace"],
        },
        scope="Namespaced",
        columns=[
            _column("Instance", ".resource.instanceType"),
            _condition_column("ResourceReady"),
            _condition_column("InferenceReady"),
            _condition_column("JobStarted"),
            _condition_column("WorkspaceReady"),
            _column("Age", ".metadata.creationTimestamp", type="date"),
            _condition_column("WorkspaceSucceeded", priority=1),
            _column("State", ".status.state", priority=1),
            _column("Nodes", ".status.workerNodes", priority=1),
            _column("Endpoint", ".status.endpoint", priority=1),
        ],
    )


def machine_crd() -> dict[str, Any]:
    """``machines.karpenter.sh``, the version that gpu-provisioner served (facts P1.1 to P1.3)."""
    return _crd(
        Machine,
        api_version=MACHINE_API_VERSION,
        names={
            "kind": "Machine",
            "listKind": "MachineList",
            "plural": "machines",
            "singular": "machine",
            "categories": ["karpenter"],
        },
        scope="Cluster",
        columns=[
            _column("Type", r".metadata.labels.node\.kubernetes\.io/instance-type"),
            _column("Zone", r".metadata.labels.karpenter\.k8s\.azure/zone"),
            _column("Node", ".status.nodeName"),
            _condition_column("Ready"),
            _column("Age", ".metadata.creationTimestamp", type="date"),
            _column("Capacity", r".metadata.labels.karpenter\.sh/capacity-type", priority=1),
            _column("Provisioner", r".metadata.labels.karpenter\.sh/provisioner-name", priority=1),
            _column("Template", ".spec.machineTemplateRef.name", priority=1),
        ],
    )


CRDS: Final[Mapping[str, Callable[[], dict[str, Any]]]] = {
    f"{GROUP}_workspaces": workspace_crd,
    "karpenter.sh_machines": machine_crd,
}
"""File name without suffix to the function that makes its content."""


def crd_yaml(name: str) -> str:
    """The content of ``deploy/crds/<name>.yaml``."""
    import yaml  # lazy: only the generator and its test need it

    class Plain(yaml.SafeDumper):
        """No anchors: kubectl reads them, people and diff tools do not like to."""

        ignore_aliases = staticmethod(lambda _data: True)  # type: ignore[assignment]

    header = "# Generated from kaito/api by `kaito crds`; do not edit.\n"
    return header + yaml.dump(CRDS[name](), Dumper=Plain, sort_keys=False, width=100)


def documents() -> dict[str, str]:
    """Every file of ``deploy/crds``, by file name."""
    return {f"{name}.yaml": crd_yaml(name) for name in CRDS}


def _crd(
    model: type[Model],
    *,
    api_version: str,
    names: dict[str, Any],
    scope: str,
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    group, _, version = api_version.partition("/")
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{group}"},
        "spec": {
            "group": group,
            "names": names,
            "scope": scope,
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": _root(model)},
                }
            ],
        },
    }


def _root(model: type[Model]) -> dict[str, Any]:
    """The model's schema as the root of a kind: nothing required, the API server's fields in it."""
    schema = structural(model)
    schema.pop("required", None)
    schema["properties"] = {
        "apiVersion": _API_VERSION,
        "kind": _KIND,
        **schema["properties"],
        "metadata": {"type": "object"},
    }
    return schema


def _column(name: str, path: str, *, type: str = "string", priority: int = 0) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": type, "jsonPath": path}
    return column | ({"priority": priority} if priority else {})


def _condition_column(name: str, *, priority: int = 0) -> dict[str, Any]:
    path = f'.status.conditions[?(@.type=="{name}")].status'
    return _column(name, path, priority=priority)
