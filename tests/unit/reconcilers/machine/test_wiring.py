"""Which events wake which claim."""

import asyncio

import msgspec

from kaito.api.meta import ConditionView
from kaito.api.views import Node
from kaito.clock import SystemClock
from kaito.controller.controller import Controller
from kaito.informers.freshness import Freshness
from kaito.informers.handlers import Change
from kaito.provisioner.inventory import Inventory
from kaito.reconcilers.act import Actor
from kaito.reconcilers.machine import wiring
from tests.fakes.backend import InMemoryBackend
from tests.fakes.clock import FakeClock, settle
from tests.fakes.kube import FakeKube
from tests.fakes.mutation import WatchedInformerSet
from tests.unit.reconcilers.machine.builders import NAME, node
from tests.unit.reconcilers.machine.stage import Stage


class Heard:
    """Stands for the controller: what it watches, and what it was told to look at."""

    def __init__(self) -> None:
        self.watched: list[str] = []
        self.keys: list[tuple[str, str]] = []

    def watch(self, informer, to_keys, *, predicate=None) -> None:
        self.watched.append(informer.kind.plural)

    def enqueue(self, key, *, after=0.0) -> None:
        self.keys.append(key)


async def test_claims_nodes_and_the_clouds_list_wake_a_claim():
    """P3.1, W20."""
    clock = FakeClock()
    inventory = Inventory(InMemoryBackend(clock), clock)
    informers = WatchedInformerSet(FakeKube(clock=clock), clock=SystemClock())
    heard = Heard()
    sources = wiring.sources(informers)
    wiring.register(heard, sources, inventory)
    assert heard.watched == ["machines", "nodes"]
    inventory.wake_after("pool1")
    await inventory._list()
    assert heard.keys == [("", "pool1")]
    made = wiring.build(
        client=FakeKube(), actor=None, clock=clock, sources=sources, inventory=inventory
    )
    assert (await made.reconcile(("", "absent"))).requeue_after is None


def test_a_node_wakes_the_claim_of_its_pool():
    """P0.2: pool name and claim name are one."""
    assert wiring.node_keys(Change(None, node())) == [("", NAME)]
    bare = Node(metadata=msgspec.structs.replace(node().metadata, labels={}))
    assert wiring.node_keys(Change(bare, bare)) == []
    assert wiring.node_keys(Change(node(), bare)) == [("", NAME)]


def test_a_nodes_heartbeat_wakes_nobody():
    """W21."""
    before = node()
    beat = (*before.status.conditions, ConditionView("MemoryPressure", "False"))
    after = msgspec.structs.replace(
        before, status=msgspec.structs.replace(before.status, conditions=beat)
    )
    assert not wiring.node_changed(Change(before, after))
    assert wiring.node_changed(Change(before, node(ready=False)))
    assert wiring.node_changed(Change(before, None))


async def test_events_alone_carry_a_claim_from_creation_to_its_end():
    """G16, A3: informers, queue, freshness and inventory as the operator joins them."""
    stage = Stage(nodes_go=False)
    freshness = Freshness(clock=stage.clock)
    stage.kube.on_written = freshness.on_written
    informers = WatchedInformerSet(stage.kube, clock=stage.clock)
    inventory = Inventory(stage.backend, stage.clock, jitter=lambda: 1.0)
    sources = wiring.sources(informers)
    reconciler = wiring.build(
        client=stage.kube,
        actor=Actor(client=stage.kube, recorder=stage.recorder, backend=stage.backend),
        clock=stage.clock,
        sources=sources,
        inventory=inventory,
    )
    controller = Controller("machine", reconciler.reconcile, clock=stage.clock, freshness=freshness)
    wiring.register(controller, sources, inventory)

    async def until(holds) -> None:
        for _ in range(60):
            if holds():
                return
            await stage.clock.advance(2)
            await stage._vms()
            await settle(60)
        raise AssertionError(f"never came to hold: {stage.claim}")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(c) for c in (informers.run(), inventory.run(), controller.run())]
        stage.ask()
        await until(stage.is_ready)
        await stage.ask_no_more()
        await until(stage.is_gone)
        for task in tasks:
            task.cancel()
    assert (stage.backend.created, stage.backend.peak) == (1, 1)
    assert stage.backend.calls["put"] == stage.backend.calls["delete"] == 1
    assert len(stage.kube.writes()) <= 20
