"""What the live claim must still say before a machine is ordered for it."""

from __future__ import annotations

from typing import Any

import pytest

from kaito.constants import TERMINATION_FINALIZER
from kaito.errors import Conflict
from kaito.reconcilers.act import Actor
from kaito.reconcilers.actions import Launch
from kaito.reconcilers.kinds import MACHINES
from tests.fakes.backend import InMemoryBackend
from tests.fakes.clock import FakeClock
from tests.fakes.kube import FakeKube
from tests.unit.reconcilers.machine.builders import NAME, manifest
from tests.unit.reconcilers.machine.stage import FakeRecorder
from tests.unit.reconcilers.test_act import request


class Scene:
    """One claim, looked at; what is done to it later the cache has not seen."""

    def __init__(self) -> None:
        clock = FakeClock()
        self.kube = FakeKube(clock=clock)
        self.backend = InMemoryBackend(clock)
        self.actor = Actor(client=self.kube, recorder=FakeRecorder(), backend=self.backend)
        self.seen = self.kube.seed(MACHINES, manifest(finalizers=["x", TERMINATION_FINALIZER]))

    def edit(self, **changes: Any) -> None:
        body = self.kube.body(MACHINES, "", NAME)
        assert body is not None
        for part, values in changes.items():
            body[part] |= values
        self.kube.seed(MACHINES, body)

    async def launch(self) -> Any:
        claim = MACHINES.ref(self.seen)
        order = Launch(claim, request(claim), self.seen.metadata.generation)
        return (await self.actor.act(claim, (order,))).worst


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_claim_that_is_as_it_was_seen_gets_its_machine(scene: Scene) -> None:
    """G6."""
    assert await scene.launch() is None
    assert scene.backend.created == 1


async def test_no_machine_is_bought_for_a_live_claim_that_lost_our_finalizer(scene: Scene) -> None:
    """G6: such a claim can go at any moment, and then nobody gives the machine back."""
    scene.edit(metadata={"finalizers": ["x"]})
    refused = await scene.launch()
    assert isinstance(refused, Conflict)
    assert "finalizer" in str(refused)
    assert scene.backend.calls["put"] == 0


async def test_the_old_size_is_not_bought_after_an_edit_of_the_claim(scene: Scene) -> None:
    """G6: the cache is behind, the live read is not."""
    scene.edit(spec={"requirements": []})
    refused = await scene.launch()
    assert isinstance(refused, Conflict)
    assert "edited" in str(refused)
    assert scene.backend.calls["put"] == 0


async def test_a_change_of_metadata_alone_holds_no_launch_back(scene: Scene) -> None:
    """G6: generations count edits of the spec only."""
    scene.edit(metadata={"annotations": {"note": "of somebody"}})
    assert await scene.launch() is None
    assert scene.backend.created == 1
