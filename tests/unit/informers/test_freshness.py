"""Read-your-own-writes against a real informer over a client that answers what was written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import REGISTRY

from kaito.errors import TransportError
from kaito.informers.freshness import CURRENT, Freshness
from kaito.informers.handlers import Change
from kaito.informers.informer import Informer
from kaito.kube.client import Written
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

ME = ("workspace", ("ns", "me"))
OTHER = ("workspace", ("ns", "other"))


class Scene:
    """The cache stands at version 5 and holds ``a`` at 1."""

    def __init__(self, *, live: object = "no reader", **options) -> None:
        self.clock = FakeClock()
        self.kube = FakeKube()
        self.kube.feeds.append(Feed(added("a", 1), bookmark(5, marker=True)))
        self.informer: Informer[Thing] = Informer(self.kube, THINGS, clock=self.clock, **options)
        self.live = live
        self.reads: list[str] = []
        reader = None if live == "no reader" else self.read
        self.freshness = Freshness(clock=self.clock, read=reader)
        self.freshness.track(self.informer)
        self.woken: list[str] = []

    async def read(self, kind: Kind[Thing], namespace: str, name: str) -> Thing | None:
        self.reads.append(name)
        if isinstance(self.live, Exception):
            raise self.live
        return self.live  # type: ignore[return-value]

    def wrote(self, name: str = "a", version: int | str | None = 7, **more) -> None:
        self.freshness.record(more.pop("owner", ME), written(name, version, **more))

    def wait(self, owner=ME) -> None:
        self.freshness.on_fresh(owner, lambda: self.woken.append(owner[1][1]))

    async def send(self, *lines: bytes) -> None:
        self.kube.open.send(*lines)
        await settle()

    @property
    def is_pending(self) -> bool:
        return self.freshness.pending(ME)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.informer.run()),
                group.create_task(self.freshness.run()),
            ]
            await settle()
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()


def written(name: str, version: int | str | None, **more) -> Written:
    uid = more.pop("uid", f"uid-{name}")
    text = None if version is None else str(version)
    return Written(THINGS, more.pop("namespace", "ns"), name, uid, text, **more)


def timeouts() -> float:
    labels = {"controller": "workspace"}
    return REGISTRY.get_sample_value("controller_stale_cache_timeouts_total", labels) or 0.0


async def test_a_key_that_wrote_waits_until_the_cache_shows_it():
    """A1, A2, A3: released by the event, once, without polling."""
    scene = Scene()
    async with scene.running():
        scene.wrote(version=7)
        scene.wait()
        await scene.send(modified("a", 6))
        assert scene.is_pending
        await scene.send(modified("a", 7), modified("a", 8))
        assert not scene.is_pending
    assert scene.woken == ["me"]


async def test_a_key_that_wrote_nothing_never_waits():
    """A4."""
    scene = Scene()
    scene.wait()
    assert not scene.is_pending
    assert scene.woken == ["me"]


async def test_an_echo_that_came_before_the_reply_counts_as_seen():
    """A1."""
    scene = Scene()
    async with scene.running():
        await scene.send(modified("a", 7))
        scene.wrote(version=7)
        assert not scene.is_pending


async def test_a_bookmark_proves_that_the_write_was_passed():
    """A2: also for an object outside the informer's view."""
    scene = Scene()
    async with scene.running():
        scene.wrote("elsewhere", 7)
        await scene.send(bookmark(9))
        assert not scene.is_pending


async def test_only_the_last_write_to_an_object_is_waited_for():
    scene = Scene()
    async with scene.running():
        scene.wrote(version=7)
        scene.wrote(version=8)
        await scene.send(modified("a", 7))
        assert scene.is_pending
        await scene.send(modified("a", 8))
        assert not scene.is_pending


async def test_a_key_waits_for_all_of_its_writes_and_for_nobody_elses():
    """A2."""
    scene = Scene()
    async with scene.running():
        scene.wrote("b", 6)
        scene.wrote("c", 7)
        scene.wrote("d", 8, owner=OTHER)
        scene.wait()
        scene.wait(OTHER)
        await scene.send(added("b", 6))
        assert scene.woken == []
        await scene.send(added("c", 7))
        assert scene.woken == ["me"]
        await scene.send(added("d", 8))
        assert scene.woken == ["me", "other"]


async def test_a_delete_is_seen_when_the_key_is_gone():
    """A2."""
    scene = Scene()
    async with scene.running():
        scene.wrote("a", "", deleted=True)
        await scene.send(added("x", 6), bookmark(7))
        assert scene.is_pending
        await scene.send(deleted("a", 8))
        assert not scene.is_pending


async def test_a_delete_is_seen_when_another_object_has_the_key():
    """A2: by a list too, where nobody says which key changed."""
    scene = Scene()
    async with scene.running():
        scene.wrote("a", "", deleted=True)
        await scene.informer.scopes[0].replace({("ns", "a"): thing("a", 9, uid="new")}, "9")
        assert not scene.is_pending


async def test_a_delete_that_waits_for_finalizers_counts_as_an_update():
    """G17: the client reports the object's version then."""
    scene = Scene()
    async with scene.running():
        scene.wrote("a", 7, deleted=False)
        await scene.send(modified("a", 7, deletionTimestamp="2026-01-01T00:00:00Z"))
        assert not scene.is_pending


async def test_kinds_and_namespaces_without_an_informer_are_not_waited_for():
    """A2, G17."""
    scene = Scene(namespaces=("ns",))
    other = Kind("ex.io", "v1", "Gadget", "gadgets", True, THINGS.decode)
    scene.freshness.record(ME, Written(other, "ns", "g", "u", "9"))
    scene.wrote("a", 9, namespace="far away")
    assert not scene.is_pending


async def test_versions_that_are_no_numbers_fail_open():
    """A3."""
    scene = Scene()
    scene.wrote(version="abc")
    assert not scene.is_pending


async def test_an_unknown_write_waits_for_one_live_read_and_then_for_its_version():
    """A1, G17."""
    scene = Scene(live=thing("a", 8))
    async with scene.running():
        scene.wrote(version=None)
        await scene.send(modified("a", 7))
        assert scene.reads == ["a"]
        assert scene.is_pending
        await scene.send(modified("a", 8))
        assert not scene.is_pending


async def test_an_unknown_write_that_left_nothing_waits_for_absence():
    """A1."""
    scene = Scene(live=None)
    async with scene.running():
        scene.wrote("b", None)
        await settle()
        assert not scene.is_pending
        scene.wrote("a", None, uid="")
        await settle()
        assert scene.is_pending
        await scene.send(deleted("a", 9))
        assert not scene.is_pending


async def test_a_live_read_that_fails_is_tried_again_with_the_late_check():
    scene = Scene(live=TransportError("cut"))
    async with scene.running():
        scene.wrote(version=None)
        await settle()
        scene.live = thing("a", 5)
        assert scene.is_pending
        await scene.clock.advance(5)
        assert not scene.is_pending
        assert scene.reads == ["a", "a"]


async def test_a_late_cache_is_checked_live_after_five_seconds():
    """A3: an object that has gone meanwhile is not waited for."""
    scene = Scene(live=None)
    async with scene.running():
        scene.wrote("b", 7)
        await scene.clock.advance(4.9)
        assert scene.reads == []
        await scene.clock.advance(0.1)
        assert scene.reads == ["b"]
        assert not scene.is_pending


async def test_a_cache_that_never_catches_up_lets_the_key_run_after_thirty_seconds():
    """A3: fail open, counted by key that waited; for unknown writes and deletes as well."""
    scene = Scene()
    before = timeouts()
    async with scene.running():
        scene.wrote("a", 7)
        scene.wrote("b", None)
        scene.wrote("a", "", deleted=True, owner=OTHER)
        scene.wait()
        await scene.clock.advance(29)
        assert scene.is_pending
        await scene.clock.advance(1)
        assert not scene.is_pending
        assert scene.woken == ["me"]
        assert timeouts() == before + 1  # not by write, and OTHER never waited
        assert not scene.freshness._writes
        assert scene.freshness._timer is None


async def test_a_write_is_booked_to_the_reconcile_that_is_running():
    """A1: and outside of any it is nobody's."""
    scene = Scene()
    scene.freshness.on_written(written("a", 7))
    assert not scene.is_pending
    token = CURRENT.set(ME)
    try:
        scene.freshness.on_written(written("b", 8))
    finally:
        CURRENT.reset(token)
    assert scene.is_pending


# Echoes -------------------------------------------------------------------------------------------


class Echoes(Scene):
    """Notes what a handler of ME's controller hears, and what of it is only ME's own write."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.informer.add_handler(self.hear)

    def hear(self, change: Change[Thing]) -> None:
        self.heard.append(("echo " if self.is_echo(change) else "news ") + version(change.obj))

    def is_echo(self, change: Change[Thing], owner=ME) -> bool:
        return self.freshness.is_echo(owner, THINGS, change)


def version(obj: Thing) -> str:
    return obj.metadata.resource_version


async def test_an_echo_shows_exactly_the_version_of_our_last_write():
    """G16: anything else is somebody's change."""
    scene = Echoes()
    async with scene.running():
        scene.wrote("a", 6, exclusive=True)
        scene.wrote("a", 7, exclusive=True)
        await scene.send(modified("a", 6), modified("a", 7), modified("a", 8))
    assert scene.heard == ["news 1", "news 6", "echo 7", "news 8"]


async def test_what_one_key_wrote_is_news_to_every_other():
    """G16: the claim that a Workspace's pass made has a reconcile of its own."""
    scene = Echoes()
    scene.wrote("a", 7, exclusive=True)
    change = Change(None, thing("a", 7))
    assert scene.is_echo(change)
    assert not scene.is_echo(change, ("other", ME[1]))
    assert not scene.is_echo(change, (ME[0], ("", "other")))


async def test_an_echo_that_comes_after_the_key_ran_without_it_is_news():
    """A3, G16: the key failed open at 30 s and saw the old state; swallowed, this one was lost."""
    scene = Echoes()
    async with scene.running():
        scene.wrote("a", 7, exclusive=True)
        await scene.clock.advance(30)
        await scene.send(modified("a", 7))
    assert scene.heard == ["news 1", "news 7"]


async def test_a_list_that_shows_our_write_is_news():
    """G16: it may show others' writes below it as well, which nobody else will tell of."""
    scene = Echoes()
    async with scene.running():
        scene.wrote("a", 9, exclusive=True)
        await scene.informer.scopes[0].replace(
            {("ns", "a"): thing("a", 9, colour="by the user at 8")}, "9"
        )
        assert not scene.is_pending
    assert scene.heard == ["news 1", "news 9"]


async def test_the_echo_of_a_write_on_no_condition_is_news():
    """G16: such a one may answer with a version that somebody else made."""
    scene = Echoes()
    async with scene.running():
        scene.wrote("a", 7, exclusive=False)
        await scene.send(modified("a", 7))
    assert scene.heard == ["news 1", "news 7"]


async def test_another_object_at_our_version_is_no_echo():
    """G16: by uid, and a deletion never is one."""
    scene = Echoes()
    scene.wrote("a", 7, exclusive=True)
    assert not scene.is_echo(Change(None, thing("a", 7, uid="another")))
    assert not scene.is_echo(Change(thing("a", 7), None))


async def test_after_an_unknown_write_or_a_delete_nothing_is_an_echo():
    """G16: nor is what a live read then finds."""
    scene = Echoes()
    for later in (written("a", None), written("a", "", deleted=True)):
        scene.wrote("a", 7, exclusive=True)
        scene.freshness.record(ME, later)
        assert not scene.is_echo(Change(None, thing("a", 7)))
    scene.live, scene.freshness._read = thing("a", 8), scene.read
    async with scene.running():
        scene.wrote("a", None, uid="")
        await settle()
        await scene.send(modified("a", 8))
    assert scene.reads == ["a"]
    assert scene.heard == ["news 1", "news 8"]


async def test_of_echoes_nothing_is_remembered():
    """G16: what has been seen cannot come again."""
    scene = Echoes()
    async with scene.running():
        scene.wrote("a", 7, exclusive=True)
        await scene.send(modified("a", 7))
        assert not scene.is_echo(Change(None, thing("a", 7)))
        assert not scene.freshness._owners


async def test_of_two_replies_that_crossed_the_later_write_counts():
    """A2: the reply to the earlier one came last."""
    scene = Scene()
    async with scene.running():
        scene.wrote(version=8)
        scene.wrote(version=7)
        scene.kube.opened[0].send(modified("a", 7))
        await settle()
        assert scene.freshness.pending(ME)
        scene.kube.opened[0].send(modified("a", 8))
        await settle()
        assert not scene.freshness.pending(ME)
