"""The interpreter on fakes: what it guards, and what one refusal does to the rest."""

from __future__ import annotations

from typing import Any

import pytest

from kaito.api.meta import ObjectRef
from kaito.errors import Conflict, Forbidden, NameTaken, NotLeader, TooManyRequests
from kaito.provisioner.interface import LaunchRequest
from kaito.reconcilers.act import Actor
from kaito.reconcilers.actions import (
    Apply,
    Create,
    Delete,
    Event,
    Evict,
    Launch,
    Patch,
    RemoveFinalizer,
    Terminate,
)
from kaito.reconcilers.kinds import MACHINES, NODECLAIMS, PODS, SERVICES
from tests.fakes.backend import InMemoryBackend
from tests.fakes.clock import FakeClock
from tests.fakes.kube import FakeKube

OWNER_UID = "11111111-owner"
WORKSPACE = ObjectRef("kaito.sh/v1alpha1", "Workspace", "default", "phi", OWNER_UID)
NAME = "ws0a1b2c3d4"


class Recorder:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def record(self, regarding: ObjectRef, type: str, reason: str, action: str, note: str) -> None:
        self.reasons.append(reason)


class Scene:
    def __init__(self, backend: type[InMemoryBackend] = InMemoryBackend) -> None:
        self.clock = FakeClock()
        self.kube = FakeKube(clock=self.clock)
        self.backend = backend(self.clock)
        self.lease_left = 10.0
        self.recorder = Recorder()
        self.leads = True
        self.actor = Actor(
            client=self.kube, recorder=self.recorder, backend=self.backend, fence=self.fence
        )

    def fence(self) -> float:
        if not self.leads:
            raise NotLeader("somebody else leads")
        return self.lease_left

    async def act(self, *actions: Any) -> Any:
        return await self.actor.act(WORKSPACE, actions)

    def claim(self, **metadata: Any) -> ObjectRef:
        body = {"metadata": {"name": NAME, **metadata}, "spec": {}}
        made = self.kube.seed(MACHINES, body)
        return MACHINES.ref(made)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def service(owner_uid: str = OWNER_UID, **labels: str) -> dict[str, Any]:
    owner = {"apiVersion": "kaito.sh/v1alpha1", "kind": "Workspace", "name": "phi"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "namespace": "default",
            "name": "phi",
            "labels": labels,
            "ownerReferences": [{**owner, "uid": owner_uid, "controller": True}],
        },
        "spec": {"ports": [{"port": 80}]},
    }


def request(claim: ObjectRef) -> LaunchRequest:
    return LaunchRequest(
        name=claim.name,
        claim_uid=claim.uid,
        instance_type="Standard_NC6s_v3",
        storage_bytes=0,
        labels={},
        taints=(),
        claim_created_at=0.0,
        launched_at=0.0,
    )


async def test_an_object_of_ours_that_is_there_already_is_no_failure(scene: Scene) -> None:
    """A19, G13: AlreadyExists is settled by one live read."""
    assert (await scene.act(Create(service(), OWNER_UID))).worst is None
    assert (await scene.act(Create(service(), OWNER_UID))).worst is None
    assert [c.method for c in scene.kube.calls].count("get") == 1


async def test_a_strangers_object_is_named_with_its_owner_and_never_changed(scene: Scene) -> None:
    """A17, A19, G13: its controlling owner is another; NameTaken, tried again on a timer."""
    scene.kube.seed(SERVICES, service(owner_uid="someone"))
    before = scene.kube.body(SERVICES, "default", "phi")
    outcome = await scene.act(Create(service(), OWNER_UID))
    assert isinstance(outcome.worst, NameTaken)
    assert "Workspace phi" in str(outcome.worst)
    assert scene.kube.body(SERVICES, "default", "phi") == before


async def test_a_refusal_holds_back_later_actions_on_the_same_object_only(scene: Scene) -> None:
    """G15."""
    claim = scene.claim()
    made = await scene.kube.create(SERVICES, service())
    ref = SERVICES.ref(made)
    scene.kube.fail("merge_patch", SERVICES, Forbidden("no", status=403), times=1)
    outcome = await scene.act(
        Patch(ref, made.metadata.resource_version, {"metadata": {"labels": {"a": "b"}}}),
        Delete(ref),
        Delete(claim),
        Event("Normal", "Told", "all the same"),
    )
    assert [type(f.action) for f in outcome.failures] == [Patch]
    assert scene.kube.body(SERVICES, "default", "phi") is not None
    assert scene.kube.body(MACHINES, "", NAME) is None
    assert scene.recorder.reasons == ["Told"]


async def test_a_write_carries_the_version_of_the_snapshot_or_of_our_own_write_before(
    scene: Scene,
) -> None:
    """G12: 409 means look again; two patches of one pass do not trip over each other."""
    made = await scene.kube.create(SERVICES, service())
    ref, seen = SERVICES.ref(made), made.metadata.resource_version
    both = [Patch(ref, seen, {"metadata": {"labels": {key: "x"}}}) for key in "ab"]
    assert (await scene.act(*both)).worst is None
    late = await scene.act(Patch(ref, seen, {"metadata": {"labels": {"c": "x"}}}))
    assert isinstance(late.worst, Conflict)
    stale = await scene.act(Apply(service(), made.metadata.uid, seen))
    assert isinstance(stale.worst, Conflict)


async def test_an_apply_never_revives_what_is_gone(scene: Scene) -> None:
    """G12, A6."""
    made = await scene.kube.create(SERVICES, service())
    await scene.kube.delete(SERVICES, "default", "phi")
    gone = Apply(service(), made.metadata.uid, made.metadata.resource_version)
    assert (await scene.act(gone)).worst is not None
    assert scene.kube.body(SERVICES, "default", "phi") is None


async def test_a_delete_means_one_object_and_absence_is_done(scene: Scene) -> None:
    """A14: another object of that name stays."""
    made = await scene.kube.create(SERVICES, service())
    assert (
        await scene.act(Delete(ObjectRef("v1", "Service", "default", "phi", "old")))
    ).worst is None
    assert scene.kube.body(SERVICES, "default", "phi") is not None
    assert (await scene.act(Delete(SERVICES.ref(made)))).worst is None
    assert (await scene.act(Delete(SERVICES.ref(made)))).worst is None


async def test_only_our_finalizer_goes_and_a_moved_list_is_looked_at_again(scene: Scene) -> None:
    """A16."""
    claim = scene.claim(finalizers=["theirs", "ours"])
    assert (await scene.act(RemoveFinalizer(claim, "ours", 0))).worst is not None
    assert (await scene.act(RemoveFinalizer(claim, "ours", 1))).worst is None
    body = scene.kube.body(MACHINES, "", NAME)
    assert body is not None
    assert body["metadata"]["finalizers"] == ["theirs"]
    gone = ObjectRef("karpenter.sh/v1alpha5", "Machine", "", "gone", "x")
    assert (await scene.act(RemoveFinalizer(gone, "ours", 0))).worst is None


async def test_nothing_is_launched_for_a_claim_that_is_gone_replaced_or_going(scene: Scene) -> None:
    """G6: the claim is read live before the PUT."""
    gone = ObjectRef("karpenter.sh/v1alpha5", "Machine", "", NAME, "gone")
    assert isinstance((await scene.act(Launch(gone, request(gone), 1))).worst, Conflict)
    claim = scene.claim(finalizers=["ours"])
    assert isinstance((await scene.act(Launch(gone, request(gone), 1))).worst, Conflict)
    await scene.kube.delete(MACHINES, "", NAME)
    assert isinstance((await scene.act(Launch(claim, request(claim), 1))).worst, Conflict)
    assert scene.backend.created == 0


async def test_without_leadership_the_cloud_is_not_called(scene: Scene) -> None:
    """G6: the fence is asked last, before each call."""
    claim = scene.claim(finalizers=["karpenter.sh/termination"])
    scene.leads = False
    for action in (Launch(claim, request(claim), 1), Terminate(claim, claim.uid)):
        assert isinstance((await scene.act(action)).worst, NotLeader)
    assert not scene.backend.calls


@pytest.mark.parametrize("kind", [MACHINES, NODECLAIMS], ids=["Machine", "NodeClaim"])
async def test_a_pool_of_another_live_claim_is_not_terminated(scene: Scene, kind: Any) -> None:
    """G6: both kinds are read live by the pool's name."""
    claim = scene.claim()
    if kind is NODECLAIMS:
        other = scene.kube.seed(NODECLAIMS, {"metadata": {"name": NAME}, "spec": {}})
        scene.backend.add_leftover(NAME, other.metadata.uid)
        outcome = await scene.act(Terminate(claim, other.metadata.uid))
        assert isinstance(outcome.worst, NameTaken)
        assert scene.backend.calls["delete"] == 0
    else:
        scene.kube.not_served.add(NODECLAIMS.resource)
        scene.backend.add_leftover(NAME, "a uid that nobody has")
        assert (await scene.act(Terminate(claim, "a uid that nobody has"))).worst is None
        assert scene.backend.calls["delete"] == 1


async def test_a_disruption_budget_that_forbids_an_eviction_is_not_an_error(scene: Scene) -> None:
    """P3.11: the drain asks again."""
    pod = scene.kube.seed(PODS, {"metadata": {"namespace": "default", "name": "p"}, "spec": {}})
    scene.kube.fail("create_subresource", PODS, TooManyRequests("budget", status=429), times=1)
    assert (await scene.act(Evict(PODS.ref(pod)))).worst is None
