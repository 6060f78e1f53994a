"""States of a watcher: how it gets from one to the other, and how far an outage sets it back."""

from __future__ import annotations

import math
import random

import pytest
import structlog
from prometheus_client import REGISTRY

from kaito.errors import (
    Expired,
    Forbidden,
    InvalidRequest,
    KindNotServed,
    LineTooLong,
    TransportError,
    Unauthorized,
)
from kaito.informers.course import State, Waits
from tests.fakes.clock import settle
from tests.unit.informers.fake import Feed, Page, added, bookmark, deleted, failure, line, raw
from tests.unit.informers.scene import Scene

MARKED = bookmark(5, marker=True)


def restarts(reason: str) -> float:
    labels = {"kind": "things.ex.io", "representation": "full", "reason": reason}
    return REGISTRY.get_sample_value("informer_watch_restarts_total", labels) or 0.0


async def test_each_change_of_state_has_one_cause_and_is_one_debug_line():
    """R1: all seven states, in a life that meets a stream, a list, an error and a missing kind."""
    scene = Scene()
    scene.kube.feeds += [
        InvalidRequest("no stream", status=422),
        Feed(added("a", 6)).fail(TransportError("cut")),
        KindNotServed("no such kind"),
    ]
    scene.kube.pages += [Page([], "5"), Page([], "8")]
    with structlog.testing.capture_logs() as logs:
        async with scene.running():
            await scene.clock.advance(0.8)
            await scene.clock.advance(10)
    changes = [entry for entry in logs if entry["event"] == "watcher changed state"]
    assert {entry["log_level"] for entry in changes} == {"debug"}
    assert {entry["kind"] for entry in changes} == {"things.ex.io"}
    assert [(entry["before"], entry["after"], entry["cause"]) for entry in changes] == [
        ("starting", "streaming", "first"),
        ("streaming", "listing", "first"),
        ("listing", "watching", "list complete"),
        ("watching", "backing off", "TransportError: cut"),
        ("backing off", "watching", "pause over"),
        ("watching", "not served", "KindNotServed: no such kind"),
        ("not served", "listing", "first"),
        ("listing", "watching", "list complete"),
        ("watching", "stopped", "stopped"),
    ]
    assert {entry["after"] for entry in changes} | {"starting"} == set(State)


async def test_a_server_that_restarts_finds_its_watch_resumed_and_no_list():
    """R27: it keeps the watch, silent, for a minute, ends it, refuses, answers 403, is back."""
    scene = Scene()
    refused = TransportError("connection refused")
    scene.kube.feeds += [
        Feed(MARKED, added("a", 6)),
        refused,
        refused,
        refused,
        Forbidden("not yet"),
    ]
    async with scene.running():
        await scene.clock.advance(60)
        assert scene.watcher.state is State.WATCHING
        scene.kube.feeds.append(Feed(added("b", 7)))
        scene.kube.open.end()
        await settle()
        for wait in (0.8, 1.6, 3.2, 6.4):
            assert scene.watcher.state is State.BACKING_OFF
            assert scene.sink.seen == ["list ", "ADDED a 6"]  # the cache stays as it was
            await scene.clock.advance(wait)
        assert scene.sink.seen == ["list ", "ADDED a 6", "ADDED b 7"]
        assert scene.kube.asked == ["stream -"] + ["watch 6"] * 5
        scene.kube.feeds.append(Feed(bookmark(9, marker=True)))
        scene.kube.open.send(failure(410))
        await settle()
        assert scene.kube.asked[6:] == ["stream 7"]  # only now


def test_an_outage_is_caught_up_with_within_twice_its_length_and_never_a_minute():
    """R27, R20: whatever the jitter; at most 2 x outage + 1.6 s, at most 60 s."""
    rnd = random.Random(27)
    shapes = [
        lambda: 0.0,
        lambda: math.nextafter(1.0, 0.0),
        *[random.Random(seed).random for seed in range(200)],
    ]
    for shape in shapes:
        for outage in (
            0.0,
            0.01,
            0.79,
            0.81,
            2.4,
            5.7,
            25,
            26,
            59,
            100,
            110,
            *[rnd.uniform(0, 150)],
        ):
            waits, now = Waits(shape), 0.0
            while now <= outage:  # an attempt fails as long as the server is away
                now += waits.next(now)
            assert now - outage <= min(2 * outage + 1.6, 60)


def test_the_worst_jitter_stays_within_the_bound():
    """R27, R20: short waits that end as the server is about to return, then the longest one."""
    for failures in range(12):
        chances = iter([0.0] * failures + [math.nextafter(1.0, 0.0)])
        waits, now = Waits(lambda chances=chances: next(chances)), 0.0
        for _ in range(failures):
            now += waits.next(now)
        outage = now  # the server is ready just after this attempt failed
        assert waits.next(now) <= min(2 * outage + 1.6, 60)


async def test_two_silent_watches_in_a_row_lead_to_a_list_of_whatever_the_server_has():
    """R25: a server that is behind our version says nothing, not even a bookmark."""
    scene = Scene()
    scene.kube.feeds.append(Feed(bookmark(50, marker=True)))
    async with scene.running():
        for asked in (["watch 50"], ["watch 50"] * 2, ["watch 50"] * 2 + ["stream -"]):
            await scene.clock.advance(310)
            assert scene.kube.asked[1:] == asked
        scene.kube.open.send(added("a", 3), bookmark(4, marker=True))
        await settle()
        assert scene.sink.seen == ["list ", "list a"]
        assert scene.sink.resource_version == "4"


async def test_a_line_between_two_silent_watches_makes_them_two_first_ones():
    """R25."""
    scene = Scene()
    scene.kube.feeds.append(Feed(bookmark(50, marker=True)))
    async with scene.running():
        await scene.clock.advance(310 + 310)
        scene.kube.open.send(added("a", 51))
        await scene.clock.advance(310 + 310)
        assert scene.kube.asked == ["stream -", *["watch 50"] * 2, *["watch 51"] * 2]


async def test_a_stream_without_events_is_warned_of_after_ten_seconds_and_left_after_thirty():
    """R6."""
    scene = Scene()
    scene.kube.feeds.append(Feed(added("a", 1)))
    scene.kube.pages.append(Page([raw("a", 1)], "5"))
    with structlog.testing.capture_logs() as logs:
        async with scene.running():
            await scene.clock.advance(9.9)
            assert not [entry for entry in logs if entry["log_level"] == "warning"]
            await scene.clock.advance(0.1)
            warned = [entry for entry in logs if entry["log_level"] == "warning"]
            assert [entry["event"] for entry in warned] == ["no events in initial stream"]
            await scene.clock.advance(19.9)
            assert scene.kube.asked == ["stream -"]
            await scene.clock.advance(0.1)
            assert scene.kube.asked == ["stream -", "list 0", "watch 5"]


async def test_a_busy_server_that_knows_no_stream_is_listed_once_the_watch_is_over():
    """R6: events that go on coming keep it from falling silent, and its marker never comes."""
    scene = Scene()
    scene.kube.feeds.append(Feed(added("a", 1)))
    scene.kube.pages.append(Page([raw("a", 1)], "5"))
    async with scene.running():
        for version in range(2, 17):
            await scene.clock.advance(20)
            scene.kube.open.send(added("a", version))
        scene.kube.open.end()
        await settle()
        assert scene.kube.asked == ["stream -", "list 0", "watch 5"]


async def test_a_server_that_closes_at_once_is_asked_six_times_in_thirty_seconds():
    """R17."""
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED).end(), *(Feed().end() for _ in range(20))]
    async with scene.running():
        await scene.clock.advance(30)
        assert len(scene.kube.asked) - 1 <= 6
        assert set(scene.kube.asked[1:]) == {"watch 5"}


@pytest.mark.parametrize(
    ("minimum", "chance", "asked"),
    [
        (300, 0.0, "300"),
        (300, 0.999, "599"),
        (400, 0.0, "400"),
        (400, 0.5, "600"),
        (30, 0.0, "300"),
    ],
)
async def test_a_watch_lasts_from_the_minimum_to_twice_that(minimum, chance, asked):
    """R12: less than 300 counts as 300; bookmarks are on; from the last version."""
    scene = Scene(min_watch_seconds=minimum, chance=lambda: chance)
    scene.kube.feeds.append(Feed(MARKED).fail(Expired("x")))
    async with scene.running():
        assert scene.kube.queries[0]["timeoutSeconds"] == asked
        scene.kube.open.send(MARKED, added("a", 6)).end()
        await settle()
        assert scene.kube.queries[-1] == {
            "resourceVersion": "6",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": asked,
        }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unauthorized("no"), "unauthorized"),
        (Forbidden("no"), "forbidden"),
        (KindNotServed("no"), "not_served"),
        (LineTooLong("things.ex.io: 33554433 bytes"), "line_too_long"),
        (TransportError("no"), "cut"),
    ],
)
async def test_a_watch_that_fails_is_counted_by_its_reason_and_goes_on(error, reason):
    """R22, W5: and readiness can say why."""
    before = restarts(reason)
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED).fail(error))
    async with scene.running():
        assert restarts(reason) == before + 1
        assert scene.watcher.last_error == f"{error.reason}: {error}"
        scene.kube.feeds.append(Feed(added("a", 6), bookmark(7, marker=True)))
        await scene.clock.advance(10)
        assert scene.sink.resource_version in ("6", "7")
        assert scene.watcher.last_error is None


async def test_three_bad_lines_in_a_row_are_counted_and_lead_to_a_list():
    """W7."""
    before = restarts("bad_data")
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED, b"no json"), Feed(b"no json"), Feed(b"no json")]
    async with scene.running():
        await scene.clock.advance(0.8)
        await scene.clock.advance(1.6)
        await scene.clock.advance(3.2)
        assert scene.kube.asked == ["stream -", "watch 5", "watch 5", "stream 5"]
    assert restarts("bad_data") == before + 3


async def test_events_of_one_run_come_in_their_order_a_new_uid_included():
    """R31."""
    scene = Scene()
    scene.kube.feeds.append(
        Feed(MARKED, added("a", 6), deleted("a", 7), added("a", 8, uid="other"), bookmark(9))
    )
    async with scene.running():
        assert scene.sink.seen == ["list ", "ADDED a 6", "DELETED a 7", "ADDED a 8"]


async def test_duplicates_are_handed_on_and_the_next_watch_starts_where_the_cache_is():
    """R15: how far that is, is the cache's to say; the watcher has no second opinion."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, added("a", 6), added("a", 6)))
    async with scene.running():
        assert scene.sink.seen == ["list ", "ADDED a 6", "ADDED a 6"]
        scene.sink.resource_version = "9"
        scene.kube.open.end()
        await settle()
        assert scene.kube.asked[-1] == "watch 9"


async def test_failed_attempts_are_no_sign_of_life():
    """S20: the last byte's time stays readable and stands still while the connection is lost."""
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED, added("a", 6)), *[TransportError("refused")] * 5]
    async with scene.running():
        heard = scene.watcher.last_byte
        scene.kube.open.fail(TransportError("cut"))
        await scene.clock.advance(20)
        assert scene.watcher.last_byte == heard == scene.clock.monotonic() - 20
    assert scene.watcher.last_byte == heard


async def test_an_object_is_decoded_once_whichever_way_it_comes():
    """R33: also those of a list that is not complete yet."""
    scene = Scene()
    scene.kube.feeds += [Feed(added("a", 1), line("MODIFIED", raw("a", 2)), MARKED, added("b", 6))]
    async with scene.running():
        assert scene.decoded == [raw("a", 1), raw("a", 2), raw("b", 6)]
