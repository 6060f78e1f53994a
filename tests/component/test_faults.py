"""One fault at a time, between our client and a real API server."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kaito.clock import SystemClock
from kaito.controller.controller import Controller
from kaito.controller.manager import Manager
from kaito.controller.result import Result
from kaito.errors import ApiError, Conflict, ServerUnavailable, TooManyRequests, TransportError
from kaito.informers.freshness import Freshness
from kaito.sandbox.binaries import ensure
from kaito.sandbox.controlplane import ControlPlane
from tests.component.through_proxy import (
    CONFIGMAPS,
    SECRETS,
    Stage,
    eventually,
    is_list,
    manifest,
    staged,
    version,
)
from tests.fakes.fast_clock import FastClock
from tests.fakes.fault_plan import (
    Cut,
    Delay,
    Duplicate,
    ErrorLine,
    Fault,
    LostReply,
    Refuse,
    Silence,
    Trickle,
    Unsent,
)
from tests.fakes.mutation import WatchedInformerSet

pytestmark = pytest.mark.controlplane


@pytest.fixture
async def stage(control_plane: ControlPlane, request: Any) -> AsyncIterator[Stage]:
    """The parameter, if there is one: how fast its clock goes."""
    async with staged(control_plane, FastClock(getattr(request, "param", 50))) as stage:
        yield stage


# Watches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [Cut(1, "close"), Cut(1, "reset")], ids=["mid-line", "connection reset"]
)
async def test_a_cut_watch_goes_on_where_it_was(stage: Stage, fault: Fault) -> None:
    """W6, R21: after a wait, from the last version, without a list; nothing lost, nothing twice."""
    async with stage.synced(fault) as (informer, heard):
        second = await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        await stage.make("third")  # the line that is cut
        await heard.until(lambda: "third" in heard.names)
        assert heard.names == ["first", "second", "third"]
        first, again = stage.watches()
        assert (is_list(first), is_list(again)) == (True, False)
        assert version(again) == second.metadata.resource_version
        assert len(stage.clock.slept) == 1
        assert stage.lists() == []
        assert len(informer.lister.list()) == 3


async def test_a_watch_that_ends_inside_a_line_goes_on_at_once(stage: Stage) -> None:
    """W6, R16: the fragment is dropped, no wait, no list."""
    async with stage.synced(Cut(1, "end")) as (_, heard):
        second = await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        await stage.make("third")
        await heard.until(lambda: "third" in heard.names)
        assert heard.names == ["first", "second", "third"]
        assert [version(e) for e in stage.watches()[1:]] == [second.metadata.resource_version]
        assert stage.clock.slept == []


@pytest.mark.parametrize("fault", [Unsent(), LostReply(), Refuse(500), Refuse(503, 1)], ids=str)
async def test_a_watch_that_cannot_start_waits_longer_each_time(stage: Stage, fault: Fault) -> None:
    """R20, R21: the version is kept and no list is asked for."""
    async with stage.synced(Cut(0), fault, fault, fault) as (_, heard):
        await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        assert heard.names == ["first", "second"]
        watches = stage.watches()
        assert [is_list(e) for e in watches] == [True, False, False, False, False]
        assert len({version(e) for e in watches[1:]}) == 1
        bounds = [(0.8, 1.6), (1.6, 3.2), (3.2, 6.4), (6.4, 12.8)]
        assert all(
            low <= wait < high for wait, (low, high) in zip(stage.clock.slept, bounds, strict=True)
        )


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_an_error_in_the_stream_that_is_no_410_keeps_the_version(
    stage: Stage, code: int
) -> None:
    """R18"""
    async with stage.synced(ErrorLine(0, code)) as (_, heard):
        await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        assert heard.names == ["first", "second"]
        assert [is_list(e) for e in stage.watches()] == [True, False]
        assert len(stage.clock.slept) == 1


async def test_410_in_the_stream_lists_at_once_and_from_the_second_on_after_a_wait(
    stage: Stage,
) -> None:
    """R8, R19: from the version there is, never from nothing; what is known is told once."""
    async with stage.synced(ErrorLine(0, 410), ErrorLine(0, 410)) as (informer, heard):
        await stage.make("second")  # may come with the second list, which comes at once
        await heard.until(lambda: "second" in heard.names)
        await stage.make("third")
        await heard.until(lambda: "third" in heard.names)
        assert heard.names == ["first", "second", "third"]
        watches = stage.watches()
        assert [is_list(e) for e in watches] == [True, True, True]
        assert [version(e) != "" for e in watches] == [False, True, True]
        assert len(stage.clock.slept) == 1
        assert len(informer.lister.list()) == 3


async def test_410_as_a_watchs_status_lists_again(stage: Stage) -> None:
    """R19: as the one in the stream; the only wait is that for the cut."""
    async with stage.synced(Cut(0), Refuse(410)) as (_, heard):
        await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        assert heard.names == ["first", "second"]
        assert [is_list(e) for e in stage.watches()] == [True, False, True]
        assert len(stage.clock.slept) == 1


async def test_what_went_while_nobody_looked_is_deleted_by_the_relist(stage: Stage) -> None:
    """R19, S5: its handlers hear of it once, with the object as it was last known."""
    await stage.make("goes")
    async with stage.synced(Cut(0), Unsent(), Refuse(410)) as (informer, heard):
        assert informer.lister.get(stage.namespace, "goes")
        await stage.real.delete(CONFIGMAPS, stage.namespace, "goes")
        await heard.until(lambda: heard.names.count("goes") == 2)
        assert informer.lister.get(stage.namespace, "goes") is None


async def test_a_list_that_is_cut_before_its_end_is_never_shown(stage: Stage) -> None:
    """R4: neither half a first list nor half a relist."""
    for number in range(5):
        await stage.make(f"early-{number}")
    early = Cut(3, initial=True)
    async with stage.synced(early, early, ErrorLine(0, 410), early) as (informer, heard):
        sizes: set[int] = set()
        informer.add_handler(lambda _: sizes.add(len(informer.lister.list())))
        await stage.make("late")
        await heard.until(lambda: "late" in heard.names)
        assert len(heard.names) == 7
        assert sizes <= {6, 7}
        assert [is_list(e) for e in stage.watches()] == [True] * 5


async def test_410_on_a_list_asks_for_any_version(stage: Stage) -> None:
    """R5, R9: where streaming is refused; the relist names the last version, once."""
    stage.script.add(Refuse(422), "WATCH")
    async with stage.synced(ErrorLine(0, 410)) as (informer, heard):
        first = informer.resource_version
        stage.script.add(Refuse(410), "GET", path="/configmaps")
        await stage.make("second")
        await heard.until(lambda: "second" in heard.names)
        assert stage.lists() == ["", first, ""]
        assert not any(is_list(e) for e in stage.watches()[1:])
        assert stage.clock.slept == []


@pytest.mark.parametrize("stage", [300], indirect=True)
async def test_a_half_open_connection_is_replaced(stage: Stage) -> None:
    """R23, R24: within the idle limit, from the last version; changes made meanwhile arrive."""
    async with stage.synced(Silence(0)) as (_, heard):
        await stage.make("second")
        began = stage.clock.monotonic()
        await heard.until(lambda: "second" in heard.names)
        assert stage.clock.monotonic() - began < 700  # 600 at most are the watch's own, and 10
        assert heard.names == ["first", "second"]
        first, again = stage.watches()
        assert (first.lines, is_list(again)) == (2, False)
        assert stage.clock.slept == []


async def test_lines_that_come_twice_change_nothing(stage: Stage) -> None:
    """R15"""
    async with stage.synced(Duplicate()) as (informer, heard):
        for name in ("second", "third"):
            await stage.make(name)
        await stage.real.delete(CONFIGMAPS, stage.namespace, "second")
        last = await stage.make("last")
        await heard.until(lambda: "last" in heard.names)
        names = {obj.metadata.name for obj in informer.lister.list()}
        assert names == {"first", "third", "last"}
        assert informer.resource_version == last.metadata.resource_version


async def test_slow_bytes_are_put_together(stage: Stage) -> None:
    """W4: one at a time, list and watch."""
    async with stage.synced(Trickle(5_000)) as (informer, heard):
        body = stage.configmap("second") | {"data": {"text": "größer" * 100}}
        await stage.real.create(CONFIGMAPS, body)
        await heard.until(lambda: "second" in heard.names)
        stored = informer.lister.get(stage.namespace, "second")
        assert stored is not None
        assert stored.body["data"] == body["data"]


async def test_an_api_server_that_was_killed_and_came_back_is_caught_up_with(
    tmp_path: Path,
) -> None:
    """R27, S20: the cache answers meanwhile; the watch resumes by version, a list needs a 410."""
    plane = ControlPlane(tmp_path, binaries=ensure(os.environ, progress=print))
    await plane.start()
    try:
        async with staged(plane, FastClock(20)) as stage:
            async with stage.synced() as (informer, heard):
                before = informer.resource_version
                plane.kill_apiserver()
                await eventually(lambda: len(stage.clock.slept) >= 3)
                assert [o.metadata.name for o in informer.lister.list()] == ["first"]
                assert informer.has_synced
                await plane.restart_apiserver()
                await stage.make("second")
                await heard.until(lambda: "second" in heard.names)
                assert heard.names == ["first", "second"]
            resumed = [e for e in stage.watches()[1:] if e.status == 200]
            assert (is_list(resumed[0]), version(resumed[0])) == (False, before)
            for earlier, later in itertools.pairwise(resumed):
                assert not is_list(later) or earlier.has_error
    finally:
        await plane.stop()


# Calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [Refuse(429, 3), Refuse(503, 3)], ids=["429", "503"])
async def test_a_server_that_says_when_is_asked_again_then(stage: Stage, refusal: Refuse) -> None:
    """W14: also for what is not repeatable, as nothing was done."""
    stage.script.add(refusal, "POST", times=2)
    made = await stage.kube.create(CONFIGMAPS, stage.configmap("a"))
    assert made.metadata.name == "a"
    assert stage.clock.slept == [3.0, 3.0]
    assert [e.status for e in stage.proxy.seen("POST")] == [refusal.status] * 2 + [201]


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refuse(429), TooManyRequests),
        (Refuse(500), ServerUnavailable),
        (Refuse(503), ServerUnavailable),
    ],
    ids=["429", "500", "503"],
)
async def test_a_server_that_does_not_say_when_is_not_asked_again(
    stage: Stage, refusal: Refuse, error: type[ApiError]
) -> None:
    """W8, W14: typed by status, whatever the body is."""
    stage.script.add(refusal, "GET")
    with pytest.raises(error):
        await stage.kube.get(CONFIGMAPS, stage.namespace, "a")
    assert len(stage.proxy.seen("GET")) == 1
    assert stage.clock.slept == []


async def test_a_read_whose_reply_is_lost_is_sent_again(stage: Stage) -> None:
    """W15: once."""
    await stage.make("a")
    stage.script.add(LostReply(), "GET")
    assert await stage.kube.get(CONFIGMAPS, stage.namespace, "a")
    stage.script.add(LostReply(), "GET", times=2)
    with pytest.raises(TransportError):
        await stage.kube.get(CONFIGMAPS, stage.namespace, "a")
    assert len(stage.proxy.seen("GET")) == 4


@pytest.mark.parametrize("fault", [Unsent(), LostReply()], ids=["not sent", "reply lost"])
async def test_a_create_without_reply_is_never_sent_again(stage: Stage, fault: Fault) -> None:
    """W15: whether it was carried out, only a read can tell."""
    stage.script.add(fault, "POST")
    with pytest.raises(TransportError) as caught:
        await stage.kube.create(CONFIGMAPS, stage.configmap("a-"))
    assert caught.value.may_be_done
    assert len(stage.proxy.seen("POST")) == 1
    selector = f"stage={stage.namespace}"
    there = await stage.real.list(CONFIGMAPS, label_selector=selector)
    assert len(there) == isinstance(fault, LostReply)


async def test_a_patch_without_reply_is_never_sent_again(stage: Stage) -> None:
    """W15: an unconditional one."""
    await stage.make("a")
    stage.script.add(LostReply(), "PATCH")
    with pytest.raises(TransportError):
        await stage.kube.merge_patch(CONFIGMAPS, stage.namespace, "a", {"data": {"x": "1"}})
    assert len(stage.proxy.seen("PATCH")) == 1


async def test_writes_that_may_run_twice_are_sent_again_once(stage: Stage) -> None:
    """W15, W16: apply, delete by uid, and PUT, whose conflict may be with its own first sending."""
    stage.script.add(LostReply(), "PATCH")
    applied = await stage.kube.apply(CONFIGMAPS, stage.configmap("a"), field_manager="faults")
    assert [e.status for e in stage.proxy.seen("PATCH")] == [0, 200]

    stage.script.add(LostReply(), "PUT")
    body = {**applied.body, "data": {"x": "2"}}
    with pytest.raises(Conflict) as caught:
        await stage.kube.replace(CONFIGMAPS, body)
    assert caught.value.may_be_done
    live = await stage.real.get(CONFIGMAPS, stage.namespace, "a")
    assert live is not None
    assert live.body["data"] == {"x": "2"}

    stage.script.add(LostReply(), "DELETE")
    uid = live.metadata.uid
    assert await stage.kube.delete(CONFIGMAPS, stage.namespace, "a", uid=uid) is None
    assert [e.status for e in stage.proxy.seen("DELETE")] == [0, 404]


# Controllers ------------------------------------------------------------------------------------


class Children:
    """A controller that keeps ``want`` Secrets per key, counting them in the cache.

    ``name``: of a child, from its owner's. Ends with a dash: the server makes each another one, so
    whoever counts too few makes too many.
    """

    def __init__(self, stage: Stage, *, want: int, at_once: int, name: str = "{}-") -> None:
        clock = SystemClock()
        self.runs: list[str] = []
        self.finished = asyncio.Event()
        self._stage, self._want, self._at_once, self._name = stage, want, at_once, name
        self._kube = stage.kube
        freshness = Freshness(clock=clock, read=self._kube.get)
        self._kube.on_written = freshness.on_written
        informers = WatchedInformerSet(self._kube, clock=clock)
        self.secrets = informers.informer(
            SECRETS, label_selector=f"stage={stage.namespace}", indexes={"owner": _owner}
        )
        self.controller = Controller(
            "children", self._reconcile, clock=clock, freshness=freshness, workers=1
        )
        self.controller.watch(self.secrets, lambda c: [(stage.namespace, v) for v in _owner(c.obj)])
        self.manager = Manager(clock=clock)
        self.manager.add_informers(informers)
        self.manager.add_runnable("freshness", freshness.run, leader_only=False)
        self.manager.add_controller(self.controller)

    async def _reconcile(self, key: tuple[str, str]) -> Result:
        name = key[1]
        self.runs.append(name)
        have = len(self.secrets.lister.by_index("owner", name))
        if have >= self._want:
            self.finished.set()
            return Result()
        self.controller.enqueue(key)  # an event in the middle of the run
        for _ in range(min(self._at_once, self._want - have)):
            body = manifest(SECRETS, key[0], self._name.format(name), stage=key[0], owner=name)
            await self._kube.create(SECRETS, body)
        return Result()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.manager.run(stop))
            try:
                yield
            finally:
                stop.set()

    async def made(self) -> int:
        selector = f"stage={self._stage.namespace}"
        return len(await self._stage.real.list(SECRETS, label_selector=selector))


def _owner(obj: Any) -> list[str]:
    return [obj.metadata.labels["owner"]]


async def test_a_hundred_creates_under_a_watch_that_is_late_make_a_hundred(stage: Stage) -> None:
    """A1, A2, A4: the next run waits for the cache to show what the last one made."""
    stage.script.add(Delay(3.0), "WATCH", path="secrets")
    children = Children(stage, want=100, at_once=50)
    async with children.at_work(), asyncio.timeout(30):
        children.controller.enqueue((stage.namespace, "me"))
        await children.finished.wait()
    assert children.runs[:2] == ["me", "me"]
    assert await children.made() == 100


async def test_a_key_that_waits_for_the_cache_holds_up_no_other(stage: Stage) -> None:
    """A2, A3, Q15: with one worker; the key waits, however often it is added, then runs."""
    stage.script.add(Delay(2.0), "WATCH", path="secrets")
    children = Children(stage, want=1, at_once=1)
    me, other = (stage.namespace, "me"), (stage.namespace, "other")
    async with children.at_work(), asyncio.timeout(30):
        children.controller.enqueue(me)
        children.controller.enqueue(other)
        await children.finished.wait()
        children.finished.clear()
        await children.finished.wait()
    assert children.runs[:2] == ["me", "other"]
    assert sorted(children.runs) == ["me", "me", "other", "other"]
    assert await children.made() == 2


async def test_a_write_of_unknown_outcome_is_read_before_the_next_run(stage: Stage) -> None:
    """A1: its reply was lost; run again on the cache as it is, the reconcile would write again."""
    stage.script.add(Delay(1.0), "WATCH", path="secrets")
    stage.script.add(LostReply(), "POST")
    children = Children(stage, want=1, at_once=1, name="{}-0")
    async with children.at_work(), asyncio.timeout(30):
        children.controller.enqueue((stage.namespace, "me"))
        await children.finished.wait()
    assert len(stage.proxy.seen("POST")) == 1
    assert len(stage.proxy.seen("GET", "/secrets/me-0")) == 1
