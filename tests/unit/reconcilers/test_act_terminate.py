"""Giving a machine back: what is looked at live before anything is deleted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kaito.api.meta import ObjectRef
from kaito.errors import Conflict, NotLeader
from kaito.provisioner.interface import InstanceState, Word
from kaito.reconcilers.actions import Prove, Terminate
from kaito.reconcilers.kinds import MACHINES, NODECLAIMS
from tests.fakes.backend import InMemoryBackend, refusal
from tests.unit.reconcilers.test_act import NAME, Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def act(scene: Scene, action: Any) -> Word | None:
    outcome = await scene.act(action)
    assert outcome.worst is None
    return outcome.word


async def going(scene: Scene) -> ObjectRef:
    """A claim that is being deleted."""
    claim = scene.claim(finalizers=["karpenter.sh/termination"])
    await scene.kube.delete(MACHINES, "", NAME)
    return claim


async def test_what_a_list_shows_settled_is_deleted_without_a_look(scene: Scene) -> None:
    """P4.12: one call, for a claim that is going."""
    claim = await going(scene)
    scene.backend.add_leftover(NAME, claim.uid)
    assert await act(scene, Terminate(claim, claim.uid)) is Word.GOING
    assert scene.backend.calls == {"delete": 1}


async def test_what_no_list_shows_is_looked_at_and_deleted(scene: Scene) -> None:
    """G8: absent by a look and by the deletion's own answer."""
    claim = await going(scene)
    unseen = Terminate(claim, None, is_settled=False)
    assert await act(scene, unseen) is Word.ABSENT
    assert scene.backend.calls == {"get": 1, "delete": 1}
    scene.backend.add_leftover(NAME, claim.uid)
    assert await act(scene, unseen) is Word.GOING
    assert scene.backend.calls == {"get": 2, "delete": 2}
    assert await act(scene, unseen) is Word.GOING  # on its way already: once is enough
    assert scene.backend.calls == {"get": 3, "delete": 2}


async def test_a_strangers_machine_that_no_list_shows_is_left_alone(scene: Scene) -> None:
    """G6, P2.4: and of the claim's own there is none."""
    claim = scene.claim()
    scene.backend.add_foreign(NAME)
    assert await act(scene, Terminate(claim, None, is_settled=False)) is Word.ABSENT
    assert scene.backend.calls == {"get": 1}


async def test_a_leftover_that_no_list_shows_is_checked_like_any_other(scene: Scene) -> None:
    """G6: the uid counts that it bears now."""
    claim = scene.claim()
    other = scene.kube.seed(NODECLAIMS, {"metadata": {"name": NAME}, "spec": {}})
    scene.backend.add_leftover(NAME, other.metadata.uid)
    outcome = await scene.act(Terminate(claim, None, is_settled=False))
    assert outcome.worst is not None
    assert outcome.word is None
    assert scene.backend.calls == {"get": 1}


async def test_a_look_changes_nothing_and_tells_three_things_apart(scene: Scene) -> None:
    """G8."""
    claim = scene.claim()
    assert await act(scene, Prove(claim)) is Word.ABSENT
    scene.backend.add_leftover(NAME, claim.uid)
    assert await act(scene, Prove(claim)) is Word.THERE
    await scene.backend.terminate(NAME)
    assert await act(scene, Prove(claim)) is Word.GOING
    scene.backend.add_foreign(NAME)
    assert await act(scene, Prove(claim)) is Word.ABSENT
    assert len(scene.backend.instances) == 1


@pytest.mark.parametrize("listed_uid", ["an earlier claim's", None])
async def test_a_live_claims_machine_is_not_deleted_on_an_old_list(
    scene: Scene, listed_uid: str | None
) -> None:
    """G6: a list showed a leftover, or the failed first try; by now the claim's own one is well."""
    claim = scene.claim()
    scene.backend.add_leftover(NAME, claim.uid)
    outcome = await scene.act(Terminate(claim, listed_uid or claim.uid))
    assert isinstance(outcome.worst, Conflict)
    assert scene.backend.calls == {"get": 1}


async def test_a_failed_or_leftover_machine_of_a_live_claim_is_cleared_away(scene: Scene) -> None:
    """P6.3: seen gone before the next PUT."""
    claim = scene.claim()
    assert await act(scene, Terminate(claim, claim.uid)) is Word.ABSENT
    assert scene.backend.calls == {"get": 1}
    scene.backend.add_leftover(NAME, "an earlier claim's")
    assert await act(scene, Terminate(claim, "an earlier claim's")) is Word.GOING
    assert scene.backend.calls == {"get": 2, "delete": 1}


async def test_an_abort_that_is_refused_holds_up_no_deletion(scene: Scene) -> None:
    """P3.13: without the right to abort a stuck pool was once billed for ever."""
    claim = await going(scene)
    scene.backend.add_leftover(NAME, claim.uid, state=InstanceState.CREATING)

    def refuse(operation: str, _: str) -> None:
        if operation == "abort":
            raise refusal("PermissionDenied")

    scene.backend.before_call = refuse
    assert await act(scene, Terminate(claim, claim.uid, is_settled=False)) is Word.GOING
    assert scene.backend.calls["delete"] == 1


async def test_a_call_to_the_cloud_ends_with_the_leadership() -> None:
    """E16: a PUT that outlives the lease could land after the next leader has looked."""

    class Hanging(InMemoryBackend):
        async def get(self, name: str) -> None:
            await asyncio.Event().wait()

    scene = Scene(Hanging)
    scene.lease_left = 0.0
    outcome = await scene.act(Prove(scene.claim()))
    assert isinstance(outcome.worst, NotLeader)
