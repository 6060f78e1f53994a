"""What an informer shows: some namespaces, some objects, up to a version; and what it exports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from kaito.errors import Forbidden, KindNotServed
from kaito.informers.informer import Informer, InformerSet
from kaito.kube.resources import Kind
from tests.fakes.clock import FakeClock, settle
from tests.unit.informers.fake import (
    THINGS,
    FakeKube,
    Feed,
    Thing,
    added,
    bookmark,
    deleted,
    modified,
    thing,
)
from tests.unit.informers.test_informer import told


class Scene:
    """An informer of the namespaces ``a`` and ``b``; ``feeds``: what a watch of each brings."""

    def __init__(self, *feeds: Feed | Exception, **options) -> None:
        self.clock = FakeClock()
        self.kube = FakeKube()
        self.kube.feeds += feeds
        self.informer: Informer[Thing] = Informer(
            self.kube, THINGS, clock=self.clock, namespaces=("a", "b"), **options
        )
        self.heard: list[str] = []
        self.informer.add_handler(lambda change: self.heard.append(told(change)))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.informer.run())
            await settle()
            try:
                yield
            finally:
                task.cancel()


def feeds() -> tuple[Feed, Feed]:
    return (
        Feed(added("x", 1, namespace="a", uid="1"), bookmark(5, marker=True)),
        Feed(added("x", 2, namespace="b", uid="2"), bookmark(7, marker=True)),
    )


async def test_some_namespaces_are_one_cache_with_a_watch_each():
    """R36: and nothing is asked of any other."""
    a, b = feeds()
    scene = Scene(a, b)
    lister = scene.informer.lister
    async with scene.running():
        assert [asked["namespace"] for asked in scene.kube.options] == ["a", "b"]
        assert [o.metadata.key for o in lister.list()] == [("a", "x"), ("b", "x")]
        assert lister.resource_version == scene.informer.resource_version == "5"
        b.send(modified("x", 9, namespace="b", uid="2"), deleted("x", 10, namespace="b", uid="2"))
        a.send(bookmark(8))
        await settle()
        assert lister.list("b") == ()
        assert scene.informer.resource_version == "8"
    assert scene.heard == ["x ->1 initial", "x ->2 initial", "x 2>9", "x 10>-"]
    assert all(feed.is_closed for feed in scene.kube.opened)


async def test_it_has_synced_when_every_namespace_has():
    """R36, S6: what holds one up is named; a list of one is no deletion of the others' objects."""
    a, b = feeds()
    scene = Scene(a, Forbidden("not yours"))
    scene.kube.feeds.append(b)
    async with scene.running():
        assert not scene.informer.has_synced
        assert scene.informer.last_error == "Forbidden: not yours"
        assert scene.informer.lister.get("a", "x")
        await scene.clock.advance(2)
        await scene.informer.wait_synced()
        assert scene.informer.has_synced
        assert scene.informer.last_error is None
        await scene.informer.scopes[1].replace({}, "20")
    assert scene.heard == ["x ->1 initial", "x ->2 initial", "x 2>-"]
    assert len(scene.informer) == 1


async def test_a_late_handler_and_an_index_reach_all_namespaces():
    """R36, S8, S10."""
    scene = Scene(*feeds())
    heard: list[str] = []
    async with scene.running():
        scene.informer.add_handler(lambda change: heard.append(told(change)))
        scene.informer.add_index("uid", lambda obj: [obj.metadata.uid])
        assert scene.informer.lister.by_index("uid", "2") == scene.informer.lister.list("b")
    assert heard == ["x ->1 initial", "x ->2 initial"]


async def test_a_namespace_without_the_kind_holds_up_unless_it_is_optional():
    """R26, R36."""
    for optional in (True, False):
        a, _ = feeds()
        scene = Scene(a, KindNotServed("gone"), optional=optional)
        async with scene.running(), asyncio.TaskGroup() as group:
            waiting = group.create_task(scene.informer.wait_synced())
            await settle()
            assert waiting.done() is optional
            assert not scene.informer.has_synced
            assert not scene.informer.is_served
            waiting.cancel()


async def test_the_age_of_a_cache_is_that_of_its_quietest_watch():
    """S20, R36."""
    a, b = feeds()
    scene = Scene(a, b)
    async with scene.running():
        await scene.clock.advance(30)
        b.send(bookmark(9))
        await settle()
        assert scene.informer.staleness() == 30
        a.send(bookmark(9))
        await settle()
        assert scene.informer.staleness() == 0


# Waiting for a version ----------------------------------------------------------------------------


async def test_one_can_wait_for_a_version_and_is_woken_by_what_brings_it():
    """S16: an event, a bookmark or a list, in every namespace; no timer turns meanwhile."""
    a, b = feeds()
    scene = Scene(a, b)
    async with scene.running(), asyncio.TaskGroup() as group:
        waits = [group.create_task(scene.informer.reached(v, 100)) for v in ("5", "8", "9", "12")]
        await settle()
        assert [wait.done() for wait in waits] == [True, False, False, False]
        a.send(added("y", 8, namespace="a"))
        b.send(bookmark(11))
        await settle()
        assert [wait.done() for wait in waits] == [True, True, False, False]
        a.send(bookmark(9))
        await settle()
        assert [wait.done() for wait in waits] == [True, True, True, False]
        await scene.informer.scopes[0].replace({}, "20")
        await scene.informer.scopes[1].replace({}, "21")
        await settle()
        assert all(wait.done() for wait in waits)
    assert not any(scope._observers for scope in scene.informer.scopes)


async def test_waiting_for_a_version_ends_after_a_while():
    """S16."""
    scene = Scene(*feeds())
    async with scene.running(), asyncio.TaskGroup() as group:
        waiting = group.create_task(expect_timeout(scene.informer, "99", 3))
        await scene.clock.advance(2.9)
        assert not waiting.done()
        await scene.clock.advance(0.1)
        assert waiting.done()
    assert not any(scope._observers for scope in scene.informer.scopes)


async def expect_timeout(informer: Informer[Thing], version: str, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        await informer.reached(version, seconds)


async def test_events_make_no_tasks_and_no_timers():
    """P15: nor does a list; however many objects."""
    feed = Feed(*(added(f"t{n}", n + 1) for n in range(500)), bookmark(501, marker=True))
    clock, kube = FakeClock(), FakeKube()
    kube.feeds.append(feed)
    informer: Informer[Thing] = Informer(kube, THINGS, clock=clock)
    informer.add_handler(lambda change: None, resync=60)
    loop = asyncio.get_running_loop()
    made: list[object] = []
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await settle()
        few = (len(asyncio.all_tasks()), len(clock._timers))
        loop.set_task_factory(lambda loop, coro: made.append(coro) or asyncio.Task(coro, loop=loop))
        feed.send(*(modified(f"t{n}", 1_000 + n) for n in range(500)))
        await settle(600)
        assert informer.resource_version == "1499"
        await informer.scopes[0].replace(
            {("ns", f"t{n}"): thing(f"t{n}", 2_000 + n) for n in range(500)}, "9000"
        )
        assert (len(asyncio.all_tasks()), len(clock._timers)) == few
        loop.set_task_factory(None)
        task.cancel()
    assert made == []


# What the set exports -----------------------------------------------------------------------------

GAUGED: Kind[Thing] = Kind("ex.io", "v1", "Thing", "gauged", True, THINGS.decode)


def gauge(name: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"kind": "gauged.ex.io", "representation": "full"})


async def test_informers_that_differ_in_what_they_select_share_their_gauges():
    """S14, S20: objects are counted together, the last to sync and the most silent one decide."""
    clock, kube = FakeClock(), FakeKube()
    informers = InformerSet(kube, clock=clock)
    informers.informer(GAUGED, label_selector="a=b")
    informers.informer(GAUGED, label_selector="a=c")
    assert gauge("informer_synced") == 0
    first, second = Feed(added("x", 1), bookmark(5, marker=True)), Feed()
    kube.feeds += [first, second]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informers.run())
        await settle()
        assert gauge("informer_synced") == 0
        assert gauge("informer_objects") == 1
        second.send(added("y", 2), added("z", 3), bookmark(6, marker=True))
        await settle()
        assert gauge("informer_synced") == 1
        assert gauge("informer_objects") == 3
        await clock.advance(20)
        first.send(bookmark(9))
        await settle()
        assert gauge("informer_last_event_age_seconds") == 20
        task.cancel()


async def test_the_set_tells_how_large_each_relist_was():
    """S18: the first list of an informer is none."""
    counts: list[int] = []
    informers = InformerSet(FakeKube(), clock=FakeClock(), on_relist=counts.append)
    informer = informers.informer(THINGS)
    await informer.scopes[0].replace({("ns", "a"): thing("a", 1)}, "1")
    await informer.scopes[0].replace({("ns", n): thing(n, 2) for n in "ab"}, "2")
    assert counts == [2]
