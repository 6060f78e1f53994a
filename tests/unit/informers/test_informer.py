"""The cache with its handlers, and the set that shares them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog
from prometheus_client import REGISTRY

from kaito.errors import (
    Expired,
    Forbidden,
    InvalidRequest,
    KindNotServed,
    SyncTimeout,
    TransportError,
)
from kaito.informers.handlers import Change
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
)

WIDGETS: Kind[Thing] = Kind("ex.io", "v1", "Thing", "widgets", True, THINGS.decode)


class Scene:
    def __init__(self, *first: bytes, **options) -> None:
        self.clock = FakeClock()
        self.kube = FakeKube()
        self.kube.feeds.append(Feed(*first, bookmark(5, marker=True)))
        self.informer: Informer[Thing] = Informer(self.kube, THINGS, clock=self.clock, **options)
        self.heard: list[str] = []

    def hear(self, change: Change[Thing]) -> None:
        self.heard.append(told(change))

    async def send(self, *lines: bytes) -> None:
        self.kube.open.send(*lines)
        await settle()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.informer.run())
            await settle()
            try:
                yield
            finally:
                task.cancel()


def told(change: Change[Thing]) -> str:
    def version(obj: Thing | None) -> str:
        return obj.metadata.resource_version if obj else "-"

    flag = " initial" if change.initial else ""
    return f"{change.obj.metadata.name} {version(change.old)}>{version(change.new)}{flag}"


def sample(name: str, **labels: str) -> float:
    labels = {"kind": "things.ex.io", "representation": "full"} | labels
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_the_first_list_comes_flagged_and_later_events_do_not():
    """S7, R31: in order, updates with their old object."""
    scene = Scene(added("a", 1))
    scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.send(added("b", 6), modified("a", 7), deleted("b", 8))
    assert scene.heard == ["a ->1 initial", "b ->6", "a 1>7", "b 8>-"]


async def test_one_name_in_two_lives_is_deleted_and_added():
    """R31: within one batch too."""
    scene = Scene(added("a", 1, uid="1"))
    scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.send(deleted("a", 6, uid="1"), added("a", 7, uid="2"), added("a", 8, uid="3"))
    assert scene.heard == ["a ->1 initial", "a 6>-", "a ->7", "a 7>-", "a ->8"]


async def test_handlers_read_the_new_state():
    """S3."""
    scene = Scene()
    lister = scene.informer.lister
    seen: list[bool] = []
    scene.informer.add_handler(
        lambda change: seen.append(lister.get(*change.obj.metadata.key) is change.new)
    )
    async with scene.running():
        await scene.send(added("a", 6), modified("a", 7), deleted("a", 8))
    assert seen == [True, True, True]


async def test_synced_means_listed_and_told():
    """S6: an empty list counts."""
    scene = Scene()
    waiting = [scene.informer.has_synced]
    scene.informer.add_handler(lambda _: waiting.append(scene.informer.has_synced))
    async with scene.running():
        await scene.informer.wait_synced()
        assert scene.informer.has_synced
        assert scene.informer.lister.list() == ()
    assert waiting == [False]


async def test_first_list_handlers_run_before_synced_turns_true():
    """S6."""
    scene = Scene(added("a", 1))
    synced: list[bool] = []
    scene.informer.add_handler(lambda _: synced.append(scene.informer.has_synced))
    async with scene.running():
        assert synced == [False]
        assert scene.informer.has_synced


async def test_a_late_handler_hears_what_is_there_and_then_every_event_once():
    """S8."""
    scene = Scene(added("a", 1))
    async with scene.running():
        scene.informer.add_handler(scene.hear)
        await scene.send(added("b", 6))
    assert scene.heard == ["a ->1 initial", "b ->6"]


async def test_a_handler_added_by_a_handler_hears_nothing_twice():
    """S8: even while the event that brought it is being told."""
    scene = Scene()

    def bring(change: Change[Thing]) -> None:
        if change.new and change.new.metadata.name == "a":
            scene.informer.add_handler(scene.hear)

    scene.informer.add_handler(bring)
    async with scene.running():
        await scene.send(added("a", 6), added("b", 7))
    assert scene.heard == ["a ->6 initial", "b ->7"]


async def test_a_removed_handler_is_never_called_again():
    """S8: nor for the event in which another removed it. Twice, or of a foreign one: harmless."""
    scene = Scene()
    heard: list[str] = []

    def remove(_change: object = None) -> None:
        scene.informer.remove_handler(mine)

    scene.informer.add_handler(remove)
    other = scene.informer.add_handler(lambda change: heard.append(told(change)))
    mine = scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.send(added("a", 6))
        remove()
        Scene().informer.remove_handler(other)
        await scene.send(added("b", 7))
    assert scene.heard == []
    assert heard == ["a ->6", "b ->7"]


async def test_a_handler_that_raises_stops_no_other_and_no_later_event():
    """S9: logged and counted."""
    scene = Scene()
    before = sample("informer_handler_errors_total")

    def broken(change: Change[Thing]) -> None:
        raise ValueError("broken")

    scene.informer.add_handler(broken)
    scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.send(added("a", 6), added("b", 7))
    assert scene.heard == ["a ->6", "b ->7"]
    assert sample("informer_handler_errors_total") == before + 2


async def test_a_slow_handler_is_named_once_a_minute():
    """S9."""
    scene = Scene()

    def slow(change: Change[Thing]) -> None:
        scene.clock._boot += 0.002

    scene.informer.add_handler(slow)
    with structlog.testing.capture_logs() as logs:
        async with scene.running():
            await scene.send(added("a", 6), added("b", 7))
            scene.clock._boot += 60
            await scene.send(added("c", 8))
    warned = [entry for entry in logs if entry["event"] == "slow handler"]
    assert len(warned) == 2
    assert warned[0]["handler"].endswith("slow")


async def test_a_bookmark_moves_the_version_and_reaches_no_handler():
    """R14."""
    scene = Scene()
    scene.informer.add_handler(scene.hear)
    async with scene.running():
        await scene.send(bookmark(9))
        assert scene.informer.lister.resource_version == "9"
    assert scene.heard == []


async def test_observers_hear_of_every_step():
    steps: list[object] = []
    scene = Scene()
    scene.informer.add_observer(steps.append)
    async with scene.running():
        await scene.send(added("a", 6), bookmark(9))
    assert steps == [None, ("ns", "a"), None]


async def test_a_kind_that_goes_takes_its_objects_along():
    """R26, S6: handlers are told, has_synced stays."""
    scene = Scene(added("a", 1))
    scene.informer.add_handler(scene.hear)
    scene.kube.feeds.append(KindNotServed("gone"))
    async with scene.running():
        scene.kube.open.end()
        await settle()
        assert scene.informer.lister.list() == ()
        assert not scene.informer.is_served
        assert scene.informer.has_synced
        assert scene.heard == ["a ->1 initial", "a 1>-"]
        scene.kube.feeds.append(Feed(added("a", 9), bookmark(9, marker=True)))
        await scene.clock.advance(10)
        assert scene.heard[-1] == "a ->9"


async def test_after_a_stop_the_cache_answers_and_shows_its_age():
    """S20."""
    scene = Scene(added("a", 1))
    async with scene.running():
        pass
    await scene.clock.advance(42)
    assert scene.informer.lister.get("ns", "a")
    assert scene.informer.staleness() == 42


async def test_a_cache_grows_stale_while_its_server_is_down():
    """R21: that we try again is no sign of life; that a server answers is."""
    scene = Scene(added("a", 1))
    scene.kube.feeds.extend(TransportError("refused") for _ in range(200))
    async with scene.running():
        scene.kube.open.fail(TransportError("cut"))
        await scene.clock.advance(600)
        assert len(scene.kube.asked) > 10
        assert scene.informer.staleness() == 600
        scene.kube.feeds.clear()
        await scene.clock.advance(60)
        assert scene.informer.staleness() < 60


async def test_the_changes_of_a_list_are_told_from_those_of_the_watch():
    """G16: a list may show several events as one."""
    scene = Scene(added("a", 1))
    changes: list[Change[Thing]] = []
    scene.informer.add_handler(changes.append)
    scene.kube.feeds += [Expired("too old"), Feed(added("a", 8), bookmark(9, marker=True))]
    async with scene.running():
        await scene.send(modified("a", 6))
        scene.kube.open.end()
        await settle()
        scene.informer.add_handler(changes.append)
    assert [(told(change), change.relisted) for change in changes] == [
        ("a ->1 initial", True),
        ("a 1>6", False),
        ("a 6>8", True),
        ("a ->8 initial", True),
    ]


async def test_what_cannot_be_read_any_more_is_dropped_and_handlers_hear_of_it():
    """R33."""
    scene = Scene(added("a", 1))
    scene.informer.add_handler(scene.hear)
    steps: list[object] = []
    async with scene.running():
        scene.informer.add_observer(steps.append)
        await scene.send(modified("a", 6, colour=5), deleted("a", 7, colour=5))
        assert scene.informer.lister.list() == ()
        assert scene.informer.resource_version == "7"
    assert scene.heard == ["a ->1 initial", "a 1>-"]
    assert steps == [("ns", "a")] * 2


async def test_an_index_that_fails_is_counted():
    """S10."""
    before = sample("informer_skipped_total", reason="index")
    scene = Scene(added("a", 1), indexes={"bad": lambda obj: [obj.nope]})
    async with scene.running():
        assert scene.informer.lister.list()
        assert scene.informer.lister.by_index("bad", "x") == ()
    assert sample("informer_skipped_total", reason="index") == before + 1


async def test_events_are_counted_by_type():
    before = sample("informer_events_total", type="added")
    scene = Scene()
    async with scene.running():
        await scene.send(added("a", 6), added("b", 7))
    assert sample("informer_events_total", type="added") == before + 2


# The set ------------------------------------------------------------------------------------------


def a_set() -> tuple[InformerSet, FakeKube, FakeClock]:
    clock, kube = FakeClock(), FakeKube()
    return InformerSet(kube, clock=clock), kube, clock


@asynccontextmanager
async def started(informers: InformerSet) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informers.run())
        await settle()
        try:
            yield
        finally:
            task.cancel()


def test_one_informer_serves_all_who_ask_for_the_same():
    """S14: the indexes of all of them, and optional only if all agree."""
    informers, _, _ = a_set()
    one = informers.informer(THINGS, optional=True)
    two = informers.informer(THINGS, indexes={"colour": lambda obj: [obj.colour]})
    assert one is two
    assert not one.optional
    assert one.lister.by_index("colour", "red") == ()
    assert informers.informer(THINGS, namespaces=("x", "y")) is not one
    assert informers.informer(THINGS, namespaces=("y", "x", "y")) in set(informers)
    assert informers.informer(THINGS, metadata_only=True) is not one
    assert informers.informer(THINGS, label_selector="a=b") is not one
    assert len(list(informers)) == 4


def test_reading_a_kind_nobody_registered_says_how():
    """S13."""
    informers, _, _ = a_set()
    things = informers.informer(THINGS)
    assert informers.lister(THINGS) is things.lister
    with pytest.raises(LookupError, match=r"InformerSet\.informer"):
        informers.lister(WIDGETS)
    with pytest.raises(LookupError, match="label_selector"):  # not one that shows all, or less
        informers.lister(THINGS, label_selector="a=b")


async def test_all_informers_sync_also_those_asked_for_while_running():
    informers, kube, _ = a_set()
    kube.feeds += [Feed(bookmark(5, marker=True)), Feed(bookmark(5, marker=True))]
    informers.informer(THINGS)
    async with started(informers):
        late = informers.informer(WIDGETS)
        await informers.wait_synced(1)
        assert late.has_synced


async def test_an_optional_kind_that_is_not_served_holds_nothing_up():
    """R26."""
    informers, kube, clock = a_set()
    kube.feeds += [KindNotServed("no such kind")]
    optional = informers.informer(THINGS, optional=True)
    async with started(informers):
        await informers.wait_synced(1)
        assert not optional.has_synced
        kube.feeds.append(Feed(bookmark(5, marker=True)))
        await clock.advance(10)
        assert optional.has_synced


async def test_a_sync_that_takes_too_long_names_kinds_and_causes():
    """R22: the last error of each."""
    informers, kube, clock = a_set()
    kube.feeds += [Forbidden("not yours")] * 20
    informers.informer(THINGS)
    async with started(informers), asyncio.TaskGroup() as group:
        waiting = group.create_task(late_error(informers))
        await clock.advance(5)
        assert await waiting == "caches not synced after 5 s: things.ex.io: Forbidden: not yours"


async def late_error(informers: InformerSet) -> str:
    with pytest.raises(SyncTimeout) as caught:
        await informers.wait_synced(5)
    return str(caught.value)


async def test_a_selector_the_server_refuses_fails_the_start():
    """R30."""
    informers, kube, _ = a_set()
    kube.feeds.append(InvalidRequest("no", status=400))
    kube.pages.append(InvalidRequest("no", status=400))
    informers.informer(THINGS, field_selector="x=y")
    with pytest.raises(InvalidRequest, match="x=y"):  # bare, for whoever tells KaitoErrors apart
        await informers.run()


@pytest.mark.parametrize("name", ["label_selector", "field_selector"])
def test_what_is_no_selector_is_refused_at_once(name):
    """S11: not when a live read is held against it, where it would end all reads."""
    with pytest.raises(ValueError, match="not a label selector"):
        Scene(**{name: "a=(b)"})


async def test_an_informer_that_ends_by_itself_is_an_error():
    """P4: cancelled from inside, which a TaskGroup would take for a quiet end."""
    informers, kube, _ = a_set()
    kube.feeds.append(asyncio.CancelledError())
    informers.informer(THINGS)
    with pytest.raises(RuntimeError, match="cancelled from inside"):
        await informers.run()
