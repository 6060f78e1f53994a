"""How handlers are told of much: lists, replays and resyncs in pieces, at seams and at the end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from kaito.api.meta import ObjectMeta
from kaito.errors import Expired
from kaito.informers.freshness import Freshness
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
from tests.unit.informers.test_informer import Scene as Watched
from tests.unit.informers.test_informer import told

ME = ("workspace", ("ns", "me"))


class Scene(Watched):
    """A handler that takes 2 ms by the clock: two calls are more than a piece."""

    def __init__(self, *first: bytes, **options) -> None:
        super().__init__(*first, **options)
        self.turns: list[int] = []  # how many it had heard of at each turn of the loop

    def hear(self, change: Change[Thing]) -> None:
        super().hear(change)
        self.clock._boot += 0.002

    def tick(self) -> list[str]:
        self.clock._boot += 0.002
        return []

    @property
    def sink(self):
        return self.informer.scopes[0]

    async def count_turns(self) -> None:
        while True:
            self.turns.append(len(self.heard))
            await asyncio.sleep(0)


async def turns_until(holds: Callable[[], bool]) -> None:
    for _ in range(100):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("never came to hold")


def named(*names: str, version: int = 1) -> dict[tuple[str, str], Thing]:
    return {("ns", name): thing(name, version) for name in names}


async def test_a_list_is_told_in_pieces_with_turns_of_the_loop_between():
    """R34, S4: a piece ends with the call that passes 3 ms; readers see all from the first on."""
    scene = Scene()
    seen: list[int] = []
    scene.informer.add_handler(lambda _: seen.append(len(scene.informer.lister.list())))
    scene.informer.add_handler(scene.hear)
    async with asyncio.TaskGroup() as group:
        counting = group.create_task(scene.count_turns())
        await scene.sink.replace(named(*"abcdef"), "5")
        counting.cancel()
    assert {2, 4} <= set(scene.turns)
    assert set(scene.turns) <= {0, 2, 4, 6}
    assert seen == [6] * 6


async def test_a_kind_that_is_gone_is_told_in_pieces_too():
    """R26, R34: of all its objects at once it would hold the loop."""
    scene = Scene()
    await scene.sink.replace(named(*"abcdef"), "5")
    scene.informer.add_handler(scene.hear)
    scene.heard.clear()
    async with asyncio.TaskGroup() as group:
        counting = group.create_task(scene.count_turns())
        await scene.sink.not_served()
        counting.cancel()
    assert {2, 4} <= set(scene.turns)
    assert scene.heard == [f"{name} 1>-" for name in "abcdef"]
    assert scene.informer.lister.list() == ()
    assert scene.sink.resource_version == ""


async def test_it_has_synced_only_when_all_of_the_first_list_was_told():
    """S6: in pieces too."""
    scene = Scene()
    mine = scene.informer.add_handler(scene.hear)
    synced: list[tuple[int, bool, bool]] = []

    async def look() -> None:
        while not scene.informer.has_synced:
            synced.append((len(scene.heard), scene.informer.has_synced, mine.has_synced))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(look())
        await scene.sink.replace(named(*"abcde"), "5")
        assert mine.has_synced
    assert (4, False, False) in synced


async def test_a_handler_that_comes_in_the_middle_of_a_list_hears_of_each_object_once():
    """S8: and of those that follow."""
    scene = Scene(added("x", 1))
    late: list[str] = []
    async with scene.running(), asyncio.TaskGroup() as group:
        scene.informer.add_handler(scene.hear)
        telling = group.create_task(scene.sink.replace(named(*"abcd", version=9), "9"))
        await turns_until(lambda: len(scene.heard) >= 3)
        scene.informer.add_handler(lambda change: late.append(told(change)))
        await telling
        await scene.send(modified("a", 10))
    assert scene.heard == ["x ->1 initial", "x 1>-", "a ->9", "b ->9", "c ->9", "d ->9", "a 9>10"]
    assert late == [*(f"{name} ->9 initial" for name in "abcd"), "a 9>10"]


async def test_a_handler_removed_in_the_middle_of_a_list_hears_no_more_of_it():
    """S8."""
    scene = Scene()
    mine = scene.informer.add_handler(scene.hear)
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(scene.sink.replace(named(*"abcd"), "5"))
        await turns_until(lambda: len(scene.heard) >= 2)
        scene.informer.remove_handler(mine)
        await telling
    assert scene.heard == ["a ->1 initial", "b ->1 initial"]


async def test_a_list_cut_off_before_its_swap_leaves_all_as_it_was():
    """R35, S4: nothing is shown, told or marked."""
    scene = Scene(indexes={"slow": lambda obj: scene.tick()})
    scene.informer.add_handler(scene.hear)
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(scene.sink.replace(named(*"abcdef"), "5"))
        await asyncio.sleep(0)
        telling.cancel()
    assert telling.cancelled()
    assert (scene.heard, scene.informer.lister.list()) == ([], ())
    assert scene.informer.resource_version == ""
    assert not scene.informer.has_synced


async def test_a_list_cut_off_while_it_is_told_is_told_at_once_and_nothing_after():
    """R35: the next list would find no difference and tell nobody."""
    scene = Scene()
    scene.informer.add_handler(scene.hear)
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(scene.sink.replace(named(*"abcdef"), "5"))
        await turns_until(lambda: len(scene.heard) >= 1)
        telling.cancel()
        await asyncio.sleep(0)
        assert telling.done()
        assert len(scene.heard) == 6
    assert scene.informer.has_synced
    await scene.sink.replace(named(*"abcdef"), "6")
    assert len(scene.heard) == 6


async def test_a_late_handler_is_told_in_pieces_and_events_meanwhile_fit_in():
    """S8, S6, R34: a change of what it does not know yet reaches it as an add."""
    scene = Scene(*(added(name, 1) for name in "abcdef"))
    async with scene.running():
        late = scene.informer.add_handler(scene.hear)
        assert scene.heard == ["a ->1 initial", "b ->1 initial"]
        assert scene.informer.has_synced
        assert not late.has_synced
        sink = scene.sink
        sink.apply("MODIFIED", thing("a", 6))
        sink.apply("MODIFIED", thing("c", 7))
        sink.apply("DELETED", thing("d", 8))
        sink.apply("ADDED", thing("g", 9))
        sink.apply("MODIFIED", thing("f", 10, uid="another"))
        await late.replayed.wait()
        assert late.has_synced
        await scene.send(modified("c", 11))
    assert scene.heard[2:] == [
        *("a 1>6", "g ->9", "c ->7 initial", "e ->1 initial", "f ->10 initial", "c 7>11")
    ]


async def test_a_relist_waits_for_who_is_still_behind():
    """S8: its changes would tell some objects twice."""
    scene = Scene(*(added(name, 1) for name in "abcdef"))
    async with scene.running():
        scene.informer.add_handler(scene.hear)
        await scene.sink.replace(named(*"bcdefg", version=2), "9")
    assert scene.heard[:6] == [f"{name} ->1 initial" for name in "abcdef"]
    assert scene.heard[6:] == ["a 1>-", *(f"{name} 1>2" for name in "bcdef"), "g ->2"]


async def test_a_handler_removed_while_it_is_behind_hears_no_more():
    """S8."""
    scene = Scene(*(added(name, 1) for name in "abcdef"))
    async with scene.running():
        late = scene.informer.add_handler(scene.hear)
        scene.informer.remove_handler(late)
        await scene.send(modified("a", 6), modified("f", 7))
    assert len(scene.heard) == 2


async def test_a_replay_that_a_stop_cut_off_goes_on_with_the_next_start():
    """S8, S6: else the next list would wait for it for ever."""
    scene = Scene(*(added(name, 1) for name in "abcdef"))
    async with scene.running():
        late = scene.informer.add_handler(scene.hear)
    assert len(scene.heard) < 6
    assert not late.has_synced
    async with scene.running():
        await late.replayed.wait()
    assert scene.heard == [f"{name} ->1 initial" for name in "abcdef"]


async def test_nothing_is_told_again_unless_it_was_asked_for():
    """S15."""
    scene = Scene(added("a", 1))
    scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.clock.advance(60)
    assert scene.heard == ["a ->1 initial"]


async def test_a_resync_tells_one_handler_of_every_object_from_the_cache():
    """S15, S7: as updates from the same to the same, in pieces, asking the server nothing."""
    scene = Scene(*(added(name, 1) for name in "abc"))
    changes: list[Change[Thing]] = []
    scene.informer.add_handler(scene.hear)
    scene.informer.add_handler(changes.append, resync=10)
    async with scene.running():
        asked = len(scene.kube.asked)
        late = scene.informer.add_handler(changes.append, resync=20)
        del changes[:]
        await scene.clock.advance(9)
        assert changes == []
        await scene.clock.advance(1)
        assert [change.obj.metadata.name for change in changes] == ["a", "b", "c"]
        assert all(change.old is change.new and not change.initial for change in changes)
        scene.informer.remove_handler(late)
        await scene.clock.advance(10)
        assert len(changes) == 6
        assert len(scene.kube.asked) == asked
    assert len(scene.heard) == 3


async def test_a_resync_shows_no_state_that_has_passed():
    """S15, S3: an object that changed between two pieces has been told of by its event."""
    scene = Scene(*(added(name, 1) for name in "abcde"))
    scene.informer.add_handler(scene.hear, resync=10)
    async with scene.running(), asyncio.TaskGroup() as group:
        del scene.heard[:]
        turning = group.create_task(scene.clock.advance(10))
        await turns_until(lambda: len(scene.heard) >= 1)
        scene.sink.apply("DELETED", thing("d", 6))
        scene.sink.apply("MODIFIED", thing("e", 7))
        await turning
        turning.cancel()
    assert scene.heard[:2] == ["a 1>1", "b 1>1"]
    assert sorted(scene.heard[2:]) == ["c 1>1", "d 6>-", "e 1>7"]


async def test_a_resync_more_often_than_each_second_is_refused():
    """S15."""
    with pytest.raises(ValueError, match="too often"):
        Scene().informer.add_handler(print, resync=0.5)


class Body:
    """An object that can be referred to weakly, which views cannot."""

    def __init__(self, metadata: ObjectMeta) -> None:
        self.metadata = metadata


BODIES: Kind[Body] = Kind(
    "ex.io", "v1", "Thing", "things", True, lambda raw: Body(THINGS.decode(raw).metadata)
)


async def test_what_was_replaced_or_deleted_is_freed_at_once():
    """S17: by reference count alone: no index, handler, timer, writer or reader holds it."""
    clock, kube = FakeClock(), FakeKube()
    names = "abcd"
    kube.feeds += [
        Feed(*(added(name, 1) for name in names), bookmark(5, marker=True)),
        Expired("too old"),
        Feed(added("d", 1), bookmark(9, marker=True)),
    ]
    informer = Informer(kube, BODIES, clock=clock, indexes={"uid": lambda o: [o.metadata.uid]})
    freshness = Freshness(clock=clock)
    freshness.track(informer)
    informer.add_handler(lambda change: None, resync=10)
    gc.disable()
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(informer.run())
            await settle()
            informer.lister.list()
            held = {o.metadata.name: weakref.ref(o) for o in informer.lister.list()}
            freshness.record(ME, Written(BODIES, "ns", "a", "uid-a", "7"))
            await clock.advance(10)
            assert all(ref() is not None for ref in held.values())
            kube.open.send(modified("a", 6), deleted("b", 7)).end()
            await settle()
            assert kube.asked[-1] == "stream 7"
            alive = [name for name, ref in held.items() if ref() is not None]
            task.cancel()
    finally:
        gc.enable()
    assert alive == []  # of d the list brought a copy
