"""Giving a machine back: what is looked at live before anything is deleted."""

from __future__ import annotations

from typing import Any

import pytest

from kaito.provisioner.interface import Word
from kaito.reconcilers.actions import Prove, Terminate
from kaito.reconcilers.kinds import NODECLAIMS
from tests.unit.reconcilers.test_act import NAME, Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def act(scene: Scene, action: Any) -> Word | None:
    outcome = await scene.act(action)
    assert outcome.worst is None
    return outcome.word


async def test_what_a_list_shows_settled_is_deleted_without_a_look(scene: Scene) -> None:
    """P4.12: one call."""
    claim = scene.claim()
    scene.backend.add_leftover(NAME, claim.uid)
    assert await act(scene, Terminate(claim, claim.uid)) is Word.GOING
    assert scene.backend.calls == {"delete": 1}


async def test_what_no_list_shows_is_looked_at_and_deleted(scene: Scene) -> None:
    """G8: absent by a look and by the deletion's own answer."""
    claim = scene.claim()
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
