"""Installs the CRDs of the package into the sandbox's cluster (the operator itself never does)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

import kaito
from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.clock import Clock
from kaito.errors import KindNotServed
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind
from kaito.sandbox.errors import SandboxError

CRDS = Kind(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    False,
    decode_owned,
)

_FIELD_MANAGER = "kaito-sandbox"
_LOOK_SECONDS = 0.05
_WAIT_SECONDS = 30.0


def crd_folder() -> Path:
    """Inside an installed package, or at the root of a checkout."""
    package = Path(kaito.__file__).parent
    packed = package / "_crds"
    return packed if packed.is_dir() else package.parent / "deploy" / "crds"


async def install_crds(
    kube: KubeClient, *, clock: Clock, folder: Path, wait_seconds: float = _WAIT_SECONDS
) -> frozenset[str]:
    """Apply every CRD of the folder; their API versions, when all of them are served.

    Raises:
        SandboxError: the folder has none, or one is not served in time.
    """
    manifests = _manifests(folder)
    for manifest in manifests:
        await kube.apply(CRDS, manifest, field_manager=_FIELD_MANAGER)
    for manifest in manifests:
        try:
            async with asyncio.timeout(wait_seconds):
                await _served(kube, clock, manifest)
        except TimeoutError:
            name = manifest["metadata"]["name"]
            raise SandboxError(f"CRD {name} is not served after {wait_seconds} s") from None
    return frozenset(
        f"{manifest['spec']['group']}/{version['name']}"
        for manifest in manifests
        for version in manifest["spec"]["versions"]
        if version["served"]
    )


def _manifests(folder: Path) -> list[dict[str, Any]]:
    found = [
        document
        for path in sorted(folder.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document is not None
    ]
    if not found:
        raise SandboxError(f"no CRDs in {folder}: run `kaito crds` to generate them")
    return found


async def _served(kube: KubeClient, clock: Clock, manifest: dict[str, Any]) -> None:
    """Established, and really listed: the API server installs the handler a moment later."""
    name = manifest["metadata"]["name"]
    while not _is_established(await kube.get(CRDS, "", name)):
        await clock.sleep(_LOOK_SECONDS)
    for version in manifest["spec"]["versions"]:
        if version["served"]:
            kind = _kind(manifest["spec"], version["name"])
            while not await _is_listed(kube, kind):
                await clock.sleep(_LOOK_SECONDS)


async def _is_listed(kube: KubeClient, kind: Kind[Owned]) -> bool:
    try:
        await kube.list_page(kind, namespace="", query={"limit": "1"})
    except KindNotServed:
        return False
    return True


def _is_established(crd: Owned | None) -> bool:
    status: Any = {} if crd is None else crd.body.get("status") or {}
    conditions = status.get("conditions") or ()  # null for a moment after the creation
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _kind(spec: dict[str, Any], version: str) -> Kind[Owned]:
    names = spec["names"]
    return Kind(
        spec["group"],
        version,
        names["kind"],
        names["plural"],
        spec["scope"] == "Namespaced",
        decode_owned,
    )
