"""How both sides write, seen over the whole life of a Workspace and of a Machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mypy import api as mypy

from kaito import constants
from kaito.errors import KaitoError
from kaito.reconcilers import kinds
from kaito.reconcilers.workspace.naming import claim_name
from tests.fakes.clock import FakeClock
from tests.fakes.kube import Call, FakeKube
from tests.unit.reconcilers.machine.builders import NAME
from tests.unit.reconcilers.machine.stage import FusedKube, Stage
from tests.unit.reconcilers.workspace.builders import UID
from tests.unit.reconcilers.workspace.cluster import KINDS, Cluster, reconciler

KEY = ("default", "phi")


class OwnCalls(FusedKube):
    """Keeps apart what the operator writes from what the world around it does."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.clock, stage.fuse)
        self.ours: list[Call] = []

    async def _begin(self, call: Call) -> Any:
        if self.fuse.is_armed:
            self.ours.append(call)
        return await super()._begin(call)


async def workspace_life(cluster: Cluster, *, deleted: bool = True) -> None:
    cluster.add_workspace(count=2)
    for step in range(24 if deleted else 12):
        if step == 12:
            cluster.delete_workspace()
        if step == 10:  # someone's hand, which is corrected by an apply
            cluster.edit(kinds.DEPLOYMENTS, "phi", lambda b: b["spec"].update(replicas=7))
        await reconciler(cluster).reconcile(KEY)
        cluster.turn()
        await cluster.clock.advance(1)


async def machine_life() -> OwnCalls:
    stage = Stage()
    stage.kube = kube = OwnCalls(stage)
    stage.restart()
    stage.ask()
    await stage.until(stage.is_ready)
    await stage.ask_no_more()
    await stage.until(stage.is_gone)
    return kube


def own_writes(kube: OwnCalls) -> list[Call]:
    return [c for c in kube.ours if not c.method.startswith(("get", "list", "watch"))]


def of_status(calls: Sequence[Call], resource: str) -> list[Call]:
    found = [c for c in calls if c.options.get("subresource") == "status"]
    assert {c.kind for c in found} == {resource}
    return found


def is_guarded(call: Call) -> bool:
    """Late or sent twice, it can change nothing but the very state that it was decided on."""
    match call.method:
        case "create":
            return bool(call.body["metadata"]["name"])
        case "apply":
            return bool(call.options["uid"] and call.body["metadata"]["resourceVersion"])
        case "merge_patch":
            return bool(call.body["metadata"]["resourceVersion"])
        case "json_patch":
            return any((op["op"], op["path"]) == ("test", "/metadata/uid") for op in call.body)
        case "delete":
            return bool(call.options["uid"])
        case "create_subresource":
            return bool(call.body["deleteOptions"]["preconditions"]["uid"])
    return False


async def test_every_write_carries_what_makes_a_late_one_harmless() -> None:
    """E18, A12: by uid, version, or a name that the API server admits once."""
    cluster = Cluster(FakeClock())
    await workspace_life(cluster)
    writes = cluster.writes() + own_writes(await machine_life())
    assert {c.method for c in writes} >= {
        *("create", "apply", "merge_patch", "json_patch", "delete", "create_subresource")
    }
    assert [c for c in writes if not is_guarded(c)] == []


async def test_what_a_deposed_leader_sends_late_changes_nothing() -> None:
    """E18: every write of the road to Ready, sent again when another replica has gone that road."""
    cluster = Cluster(FakeClock())
    await workspace_life(cluster, deleted=False)
    before = {kind: cluster.bodies(kind) for kind in KINDS}
    for late in cluster.writes():
        with pytest.raises(KaitoError):
            await send(cluster, late)
    assert {kind: cluster.bodies(kind) for kind in KINDS} == before


async def send(kube: FakeKube, call: Call) -> None:
    kind = next(k for k in KINDS if k.resource == call.kind)
    match call.method:
        case "create":
            await kube.create(kind, call.body)
        case "apply":
            await kube.apply(kind, call.body, **call.options)
        case "merge_patch":
            where = (call.namespace, call.name)
            await kube.merge_patch(kind, *where, call.body, **call.options)
        case _:
            raise AssertionError(call)


async def test_status_is_one_patch_a_pass_with_all_conditions_and_a_version() -> None:
    """A9, A10, C20: and none when nothing differs; a pass over what is settled writes nothing."""
    cluster = Cluster(FakeClock())
    cluster.add_workspace()
    foreign = {"type": "Audited", "status": "True", "reason": "R", "message": "by others"}
    told: list[Call] = []
    for step in range(15):
        if step == 3:
            cluster.edit(
                kinds.WORKSPACES, "phi", lambda b: b["status"]["conditions"].append(foreign)
            )
        known = {c["type"] for c in cluster.workspace().get("status", {}).get("conditions", ())}
        cluster.calls.clear()
        await reconciler(cluster).reconcile(KEY)
        patches = of_status(cluster.writes(), kinds.WORKSPACES.resource) if cluster.writes() else []
        assert len(patches) <= 1
        for patch in patches:
            assert patch.body["metadata"]["resourceVersion"]
            assert set(patch.body) == {"metadata", "status"}
            if "conditions" in patch.body["status"]:
                assert {c["type"] for c in patch.body["status"]["conditions"]} >= known
        told += patches
        cluster.turn()
        await cluster.clock.advance(1)
    assert len(told) > 3
    assert cluster.writes() == []
    assert foreign["type"] in {c["type"] for c in cluster.workspace()["status"]["conditions"]}


async def test_a_machines_status_is_one_patch_a_pass_too() -> None:
    """A9, A11: without observedGeneration, which v1alpha5 has not."""
    patches = of_status(own_writes(await machine_life()), kinds.MACHINES.resource)
    for patch in patches:
        types = [c["type"] for c in patch.body["status"].get("conditions", ())]
        assert len(types) == len(set(types))
        assert all("observedGeneration" not in c for c in patch.body["status"]["conditions"])
        assert patch.body["metadata"]["resourceVersion"]


async def test_the_finalizer_is_a_run_of_its_own_before_anything_is_bought() -> None:
    """A15: on both sides."""
    cluster = Cluster(FakeClock())
    cluster.add_workspace()
    await reconciler(cluster).reconcile(KEY)
    first = [c for c in cluster.writes() if not c.options.get("subresource")]
    assert [c.body["metadata"]["finalizers"] for c in first] == [[constants.WORKSPACE_FINALIZER]]
    assert cluster.made == []
    stage = Stage()
    stage.ask()
    await stage.process.reconciler.reconcile(("", NAME))
    assert stage.claim is not None
    assert stage.claim["metadata"]["finalizers"] == [constants.TERMINATION_FINALIZER]
    assert stage.backend.calls["put"] == 0


async def test_what_is_being_deleted_gets_no_finalizer() -> None:
    """A15, A16: the server would refuse it, and there is nothing to clean up."""
    cluster = Cluster(FakeClock())
    cluster.add_workspace()

    def hold(body: dict[str, Any]) -> None:
        body["metadata"]["finalizers"] = ["others/hold"]

    cluster.edit(kinds.WORKSPACES, "phi", hold)
    cluster.delete_workspace()
    for _ in range(3):
        await reconciler(cluster).reconcile(KEY)
        assert cluster.workspace()["metadata"]["finalizers"] == ["others/hold"]
    assert cluster.made == []


async def test_cleanup_works_when_nothing_was_ever_made_and_leaves_others_finalizers() -> None:
    """A16."""
    cluster = Cluster(FakeClock())
    cluster.add_workspace()
    await reconciler(cluster).reconcile(KEY)

    def hold(body: dict[str, Any]) -> None:
        body["metadata"]["finalizers"].insert(0, "others/hold")

    cluster.edit(kinds.WORKSPACES, "phi", hold)
    cluster.delete_workspace()
    for _ in range(3):
        await reconciler(cluster).reconcile(KEY)
    assert cluster.workspace()["metadata"]["finalizers"] == ["others/hold"]
    assert cluster.made == []


async def test_names_follow_from_the_owner_and_none_is_generated() -> None:
    """A18: a process that knows nothing finds again what another one made."""
    cluster = Cluster(FakeClock())
    await workspace_life(cluster, deleted=False)
    creates = [c for c in cluster.writes() if c.method == "create"]
    assert all("generateName" not in c.body["metadata"] for c in creates)
    assert sorted(c.name for c in creates) == sorted(
        ["phi", "phi", claim_name(UID, 0), claim_name(UID, 1)]
    )


async def test_a_child_is_in_its_owners_namespace_and_has_one_controller() -> None:
    """A17: a cluster-scoped claim has a label in place of the reference it may not have."""
    cluster = Cluster(FakeClock())
    await workspace_life(cluster, deleted=False)
    for call in cluster.writes():
        if call.method == "create":
            meta = call.body["metadata"]
            controllers = [o["uid"] for o in meta.get("ownerReferences", ()) if o["controller"]]
            if call.kind == kinds.MACHINES.resource:
                assert controllers == []
                assert meta["labels"][constants.LABEL_WORKSPACE_UID] == UID
            else:
                assert (meta["namespace"], controllers) == ("default", [UID])


def test_what_was_read_in_part_cannot_be_put(tmp_path: Path) -> None:
    """A13: the type checker, which runs over every call we make, refuses it."""
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        """
from typing import Any
from kaito.api.meta import Owned
from kaito.api.views import MetadataOnly, Pod
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

async def put(
    client: KubeClient, kind: Kind[Any], raw: dict[str, Any],
    stripped: Owned, view: Pod, metadata: MetadataOnly,
) -> None:
    await client.replace(kind, raw)
    await client.replace(kind, stripped.body)
    await client.replace(kind, view)
    await client.replace(kind, metadata)
"""
    )
    options = ["--strict", "--follow-imports=silent", "--config-file=", "--cache-dir"]
    told, _, _ = mypy.run([*options, str(tmp_path / "cache"), str(snippet)])
    refused = [line for line in told.splitlines() if "error:" in line]
    assert [line.split(":")[1] for line in refused] == ["13", "14", "15"], told
    assert all("[arg-type]" in line for line in refused)
