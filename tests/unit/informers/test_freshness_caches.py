"""Read-your-own-writes where a kind has several caches, or one that does not show everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kaito.informers.informer import Informer
from tests.fakes.clock import settle
from tests.unit.informers.fake import THINGS, Feed, Thing, added, bookmark, deleted, modified, thing
from tests.unit.informers.test_freshness import ME, OTHER, Scene


class Caches(Scene):
    """A second informer of the kind, of objects with the label ``team=red``; it stands at 5 too."""

    def __init__(self, **options) -> None:
        super().__init__(live=options.pop("live", "no reader"))
        self.kube.feeds.append(Feed(bookmark(5, marker=True)))
        selection = options or {"label_selector": "team=red"}
        self.selective: Informer[Thing] = Informer(self.kube, THINGS, clock=self.clock, **selection)
        self.freshness.track(self.selective)
        self.freshness.track(self.selective)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running(), asyncio.TaskGroup() as group:
            task = group.create_task(self.selective.run())
            await settle()
            try:
                yield
            finally:
                task.cancel()

    async def send_both(self, *lines: bytes) -> None:
        for feed in self.kube.opened:
            feed.send(*lines)
        await settle()


async def test_every_cache_of_the_kind_has_to_show_the_write():
    """A2: a reconcile may read any of them."""
    scene = Caches(metadata_only=True)
    async with scene.running():
        scene.wrote("a", 7)
        scene.wait()
        scene.kube.opened[0].send(modified("a", 7))
        await settle()
        assert scene.is_pending
        scene.kube.opened[1].send(bookmark(8))
        await settle()
    assert scene.woken == ["me"]


async def test_a_cache_that_will_not_show_the_object_is_not_waited_for():
    """G17: one live read tells by its labels; the other caches still have to show it."""
    for labels, is_waited_for in (({"team": "blue"}, False), ({"team": "red"}, True)):
        scene = Caches(live=thing("b", 7, labels=labels))
        async with scene.running():
            scene.wrote("b", 7)
            await settle()
            assert scene.reads == ["b"]
            assert scene.is_pending
            scene.kube.opened[0].send(added("b", 7))
            await settle()
            assert scene.is_pending is is_waited_for


async def test_a_field_selector_tells_by_name():
    """G17: as far as names go."""
    scene = Caches(live=thing("b", 7), field_selector="metadata.name!=b,spec.x=1")
    async with scene.running():
        scene.wrote("b", 7)
        scene.kube.opened[0].send(added("b", 7))
        await settle()
        assert not scene.is_pending


async def test_an_object_that_leaves_a_selector_by_our_write_is_waited_for():
    """A2, G17: the cache holds it still; no read is needed to know that an event will come."""
    scene = Caches(live=thing("r", 7))
    async with scene.running():
        await scene.send_both(added("r", 6, labels={"team": "red"}))
        scene.wrote("r", 7)
        await settle()
        assert scene.reads == []
        scene.kube.opened[0].send(modified("r", 7))
        await settle()
        assert scene.is_pending
        scene.kube.opened[1].send(deleted("r", 7, labels={"team": "red"}))
        await settle()
        assert not scene.is_pending


async def test_each_namespace_is_waited_for_on_its_own():
    """A2, R36: how far the others are says nothing."""
    scene = Scene(namespaces=("ns", "far"))
    scene.kube.feeds.append(Feed(bookmark(50, marker=True)))
    async with scene.running():
        scene.wrote("a", 7)
        assert scene.is_pending
        scene.wrote("b", 40, namespace="far", owner=OTHER)
        assert not scene.freshness.pending(OTHER)
        scene.kube.opened[0].send(modified("a", 7))
        await settle()
        assert not scene.is_pending


async def test_a_watch_that_is_three_seconds_late_leads_to_no_second_object():
    """A4: a hundred passes, each of which makes what its cache lacks, make a hundred."""
    scene = Scene()
    made: list[str] = []

    def run() -> None:
        seen = len(scene.informer.lister.list("ns")) - 1  # beside ``a``
        if seen < 100:
            name = f"m{len(made)}"
            made.append(name)
            scene.wrote(name, 10 + len(made))
            scene.freshness.on_fresh(ME, run)

    async with scene.running():
        run()
        while scene.is_pending:
            await scene.clock.advance(3)
            await scene.send(added(made[-1], 10 + len(made)))
    assert len(made) == len(scene.informer.lister.list("ns")) - 1 == 100
