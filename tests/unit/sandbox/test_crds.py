"""Installing the CRDs: applied, and waited for until they are really served."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from kaito.kube.client import KubeClient
from kaito.sandbox.crds import crd_folder, install_crds
from kaito.sandbox.errors import SandboxError
from tests.fakes.clock import FakeClock
from tests.unit.sandbox.fake_cluster import FakeCluster

CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, kind: Thing}
  versions: [{name: v1, served: true}, {name: v0, served: false}]
"""


def establish(cluster: FakeCluster) -> None:
    crd: dict[str, Any] | None = cluster.read("customresourcedefinitions", "", "things.example.com")
    assert crd is not None
    crd["status"] = {"conditions": [{"type": "Established", "status": "True"}]}
    cluster.put("customresourcedefinitions", crd)


async def test_it_returns_when_the_kind_is_established_and_listed(tmp_path: Path) -> None:
    (tmp_path / "things.yaml").write_text(CRD)
    cluster, clock = FakeCluster(), FakeClock()
    cluster.unserved.add("things")
    async with asyncio.TaskGroup() as group:
        client = cast(KubeClient, cluster)
        task = group.create_task(install_crds(client, clock=clock, folder=tmp_path))
        await clock.advance(1)
        assert not task.done()
        establish(cluster)
        await clock.advance(1)
        assert not task.done(), "established, but its first list still says 404"
        cluster.unserved.clear()
        await clock.advance(1)
    assert task.result() == {"example.com/v1"}


async def test_a_kind_that_is_never_served_is_named(tmp_path: Path) -> None:
    (tmp_path / "things.yaml").write_text(CRD)
    with pytest.raises(SandboxError, match=r"things\.example\.com is not served"):
        await install_crds(
            cast(KubeClient, FakeCluster()),
            clock=FakeClock(),
            folder=tmp_path,
            wait_seconds=0.01,
        )


async def test_a_folder_without_crds_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="no CRDs in"):
        await install_crds(cast(KubeClient, FakeCluster()), clock=FakeClock(), folder=tmp_path)


def test_the_checkout_has_them() -> None:
    assert (crd_folder() / "kaito.sh_workspaces.yaml").exists()
