"""List and watch against a client that answers what the test wrote down."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY

from kaito.errors import Expired, Forbidden, InvalidRequest, KindNotServed, TransportError
from kaito.informers.course import State
from tests.fakes.clock import settle
from tests.unit.informers.fake import (
    Feed,
    Page,
    added,
    bookmark,
    deleted,
    dump,
    failure,
    line,
    modified,
    raw,
)
from tests.unit.informers.scene import Scene

MARKED = bookmark(5, marker=True)


def restarts() -> float:
    samples = next(m for m in REGISTRY.collect() if m.name == "informer_watch_restarts").samples
    return sum(s.value for s in samples if s.name.endswith("_total"))


async def test_initial_events_become_one_list_at_the_marker_and_the_stream_goes_on():
    """R3: ADDED, MODIFIED, DELETED and bookmarks before the marker are applied aside."""
    scene = Scene()
    scene.kube.feeds.append(
        Feed(added("a", 1), added("b", 2), bookmark(3), deleted("a", 4), modified("b", 4))
    )
    async with scene.running():
        assert scene.sink.seen == []
        assert scene.watcher.state is State.STREAMING
        scene.kube.open.send(MARKED, added("c", 6))
        await settle()
        assert scene.sink.seen == ["list b", "ADDED c 6"]
        assert scene.watcher.state is State.WATCHING
    assert scene.kube.asked == ["stream -"]


async def test_only_an_annotation_that_is_exactly_true_is_the_marker():
    """R3."""
    scene = Scene()
    false = {
        "metadata": {"resourceVersion": "5", "annotations": {"k8s.io/initial-events-end": "false"}}
    }
    scene.kube.feeds.append(Feed(added("a", 1), line("BOOKMARK", dump(false))))
    async with scene.running():
        assert scene.sink.seen == []


async def test_a_stream_cut_before_its_marker_leaves_the_cache_as_it_was():
    """R4: what came is dropped, the next stream starts from nothing."""
    scene = Scene()
    scene.kube.feeds.append(Feed(added("a", 1)).end())
    scene.kube.feeds.append(Feed(added("b", 2), MARKED))
    async with scene.running():
        assert scene.watcher.state is State.BACKING_OFF
        await scene.clock.advance(0.8)
        assert scene.sink.seen == ["list b"]


async def test_a_server_without_streaming_is_listed_in_pages_and_watched_from_there():
    """R5, R7, R10: nothing between list and watch is lost, as the watch starts at the list."""
    scene = Scene()
    scene.kube.feeds.append(InvalidRequest("sendInitialEvents: Forbidden", status=422))
    scene.kube.pages += [Page([raw("a", 1)], "5", "more"), Page([raw("b", 2)], "5")]
    async with scene.running():
        assert scene.sink.seen == ["list a b"]
    assert scene.kube.asked == ["stream -", "list 0", "next -", "watch 5"]


@pytest.mark.parametrize(
    ("version", "asked"), [((1, 34), "list -"), ((1, 33), "list 0"), (Forbidden("no"), "list 0")]
)
async def test_the_first_list_suits_the_server(version, asked):
    """R7."""
    scene = Scene()
    scene.kube.version = version
    scene.kube.feeds.append(InvalidRequest("no", status=422))
    scene.kube.pages.append(Page([], "5"))
    async with scene.running():
        assert scene.kube.asked == ["stream -", asked, "watch 5"]
    assert scene.kube.queries[1]["limit"] == "500"


async def test_half_a_list_never_reaches_the_cache():
    """R11."""
    scene = Scene()
    scene.kube.feeds.append(InvalidRequest("no", status=422))
    scene.kube.pages += [
        Page([raw("a", 1)], "5", "more"),
        Expired("continue"),
        Page([raw("b", 2)], "6"),
    ]
    async with scene.running():
        assert scene.sink.seen == ["list b"]
    assert scene.kube.asked == ["stream -", "list 0", "next -", "list 0", "watch 6"]


async def test_a_server_that_hangs_before_it_answers_may_still_know_the_stream():
    """R6: only silence after the answer's head speaks against it; the rest is the transport's."""
    scene = Scene()
    scene.kube.hold = asyncio.Event()
    async with scene.running():
        await scene.clock.advance(31)
        assert scene.kube.asked == ["stream -"]
        scene.kube.hold.set()
        await settle()
        await scene.clock.advance(29)
        scene.kube.open.send(MARKED)
        await settle()
        assert scene.kube.asked == ["stream -"]
        assert scene.sink.seen == ["list "]


async def test_a_list_that_is_older_than_the_cache_is_refused_and_read_without_version():
    """R8."""
    scene = Scene()
    scene.kube.feeds += [
        Feed(MARKED, added("a", 9), failure(410, reason="Expired")),
        Feed(bookmark(7, marker=True)),
        Feed(added("b", 8), bookmark(8, marker=True)),
    ]
    async with scene.running():
        assert scene.kube.asked == ["stream -", "stream 9", "stream -"]
        assert scene.sink.seen == ["list ", "ADDED a 9", "list b"]


async def test_a_list_without_a_version_is_not_taken():
    """R13: a watch needs a concrete one."""
    scene = Scene()
    scene.kube.feeds.append(InvalidRequest("no", status=422))
    scene.kube.pages += [Page([raw("a", 1)], ""), Page([raw("a", 1)], "5")]
    before = restarts()
    async with scene.running():
        assert scene.sink.seen == []
        assert restarts() == before + 1  # of the stream; a list that failed is no watch
        await scene.clock.advance(0.8)
        assert scene.sink.seen == ["list a"]


async def test_a_watch_that_ends_cleanly_goes_on_at_once_from_the_last_version():
    """R14, R16: bookmarks move the version too."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, added("a", 6), bookmark(8)).end())
    async with scene.running():
        assert scene.kube.asked == ["stream -", "watch 8"]


async def test_expired_in_mid_stream_leads_to_a_relist_at_the_last_version():
    """R19: HTTP 200, then an ERROR line."""
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED, added("a", 6), failure(410)), Feed(bookmark(7, marker=True))]
    async with scene.running():
        assert scene.kube.asked == ["stream -", "stream 6"]
        assert scene.watcher.last_error is None


@pytest.mark.parametrize("code", [429, 500, 503, 504])
async def test_a_struggling_server_keeps_its_watch_version(code):
    """R18."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, failure(code)))
    async with scene.running():
        assert scene.watcher.state is State.BACKING_OFF
        await scene.clock.advance(0.8)
        assert scene.kube.asked == ["stream -", "watch 5"]


@pytest.mark.parametrize("what", [b'{"oops":1}', b"5"])
async def test_an_error_line_that_is_no_status_leads_to_a_relist(what):
    """R18."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, line("ERROR", what)))
    async with scene.running():
        await scene.clock.advance(0.8)
        assert scene.kube.asked == ["stream -", "stream 5"]


async def test_a_version_the_server_has_not_reached_is_left_out_at_once():
    """R9: the stream says so by an ERROR line with that cause."""
    scene = Scene()
    scene.kube.feeds += [
        Feed(MARKED, failure(410)),
        Feed(failure(504, cause="ResourceVersionTooLarge")),
        Feed(bookmark(4, marker=True)),
    ]
    async with scene.running():
        assert scene.kube.asked == ["stream -", "stream 5", "stream -"]
        assert scene.sink.resource_version == "4"


async def test_a_cut_connection_is_watched_again_without_a_list():
    """R21."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, added("a", 6)).fail(TransportError("cut")))
    async with scene.running():
        assert scene.watcher.last_error == "TransportError: cut"
        await scene.clock.advance(0.8)
        assert scene.kube.asked == ["stream -", "watch 6"]
        scene.kube.open.send(modified("a", 7))
        await settle()
        assert scene.watcher.last_error is None


async def test_missing_rights_are_shown_and_asked_for_again():
    """R22."""
    scene = Scene()
    scene.kube.feeds += [Forbidden("things is forbidden"), Feed(MARKED)]
    async with scene.running():
        assert scene.watcher.last_error == "Forbidden: things is forbidden"
        await scene.clock.advance(1.0)
        assert scene.watcher.last_error is None


async def test_a_half_open_connection_is_replaced_within_ninety_seconds_of_a_bookmark():
    """R23, R24: the marker is no sign of periodic bookmarks, an ordinary one is."""
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED, bookmark(6)), Feed(added("made meanwhile", 7))]
    async with scene.running():
        await scene.clock.advance(89)
        assert scene.kube.asked == ["stream -"]
        await scene.clock.advance(1)
        assert scene.kube.asked == ["stream -", "watch 6"]
        assert scene.kube.opened[0].is_closed
        assert scene.sink.seen[-1] == "ADDED made meanwhile 7"


async def test_a_kind_without_bookmarks_may_be_silent_to_the_end_of_its_watch():
    """R23: timeoutSeconds + 10, as Events send none."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED))
    async with scene.running():
        await scene.clock.advance(309)
        assert scene.kube.asked == ["stream -"]
        await scene.clock.advance(1)
        assert scene.kube.asked == ["stream -", "watch 5"]
        assert scene.kube.queries[0]["timeoutSeconds"] == "300"


async def test_a_byte_in_time_keeps_the_stream():
    """R23."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, bookmark(6)))
    async with scene.running():
        for version in range(7, 12):
            await scene.clock.advance(60)
            scene.kube.open.send(bookmark(version))
        assert scene.kube.asked == ["stream -"]


async def test_a_kind_that_is_not_served_is_emptied_and_asked_for_every_ten_seconds():
    """R26."""
    scene = Scene()
    scene.kube.feeds += [Feed(MARKED).end(), KindNotServed("404"), KindNotServed("404")]
    async with scene.running():
        assert scene.watcher.state is State.NOT_SERVED
        assert not scene.watcher.is_served
        assert scene.sink.not_served_times == 1
        scene.sink.resource_version = ""
        await scene.clock.advance(9)
        assert len(scene.kube.asked) == 2
        scene.kube.feeds.append(Feed(added("a", 7), bookmark(8, marker=True)))
        await scene.clock.advance(1)
        await scene.clock.advance(10)
        assert scene.watcher.is_served
        assert scene.kube.asked == ["stream -", "watch 5", "stream -", "stream -"]
        assert scene.sink.seen[-1] == "list a"


async def test_a_field_selector_the_server_does_not_know_ends_the_start():
    """R30: names kind and selector."""
    scene = Scene(field_selector="spec.colour=red")
    scene.kube.feeds.append(InvalidRequest("no", status=400))
    scene.kube.pages.append(InvalidRequest("field label not supported", status=400))
    with pytest.raises(InvalidRequest, match=r"things\.ex\.io.*'spec\.colour=red'"):
        await scene.watcher.run()


async def test_selectors_and_namespace_go_into_list_and_watch_alike():
    """R29, R36."""
    scene = Scene(label_selector="a=b", field_selector="metadata.name=x", namespace="ns")
    scene.kube.feeds.append(InvalidRequest("no", status=422))
    scene.kube.pages.append(Page([], "5"))
    async with scene.running():
        assert scene.kube.asked == ["stream -", "list 0", "watch 5"]
    for asked, options in zip(scene.kube.queries, scene.kube.options, strict=True):
        assert asked["labelSelector"] == "a=b"
        assert asked["fieldSelector"] == "metadata.name=x"
        assert options["namespace"] == "ns"


async def test_metadata_only_objects_come_under_their_own_kind():
    """R32."""
    scene = Scene(metadata_only=True)
    partial = raw("a", 1, kind="PartialObjectMetadata").replace(b"ex.io/v1", b"meta.k8s.io/v1")
    scene.kube.feeds.append(Feed(line("ADDED", partial), MARKED))
    async with scene.running():
        assert scene.sink.seen == ["list a"]
        assert scene.kube.options[0]["metadata_only"] is True
