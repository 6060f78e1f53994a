"""Lines of a watch: what is stored, what is skipped, what is no line at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from kaito.api.views import decode_owned
from kaito.errors import InvalidRequest
from kaito.informers.decoder import Decoder
from tests.fakes.clock import FakeClock
from tests.unit.informers.fake import (
    THINGS,
    Feed,
    Page,
    added,
    bookmark,
    deleted,
    dump,
    line,
    modified,
    raw,
)
from tests.unit.informers.scene import Scene

MARKED = bookmark(5, marker=True)


def skipped(reason: str) -> float:
    labels = {"kind": "things.ex.io", "representation": "full", "reason": reason}
    return REGISTRY.get_sample_value("informer_skipped_total", labels) or 0.0


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("wrong_kind", raw("x", 6, kind="Widget")),
        ("wrong_kind", dump({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "rows": []})),
        ("incomplete", dump({"kind": "Thing", "apiVersion": "ex.io/v1", "metadata": {}})),
    ],
)
async def test_what_is_no_object_of_the_kind_is_skipped_and_counted(reason, bad):
    """R28, R33."""
    before = skipped(reason)
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, line("ADDED", bad), added("a", 7)))
    async with scene.running():
        assert scene.sink.seen == ["list ", "ADDED a 7"]
    assert skipped(reason) == before + 1


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("incomplete", raw("a", 6, uid="")),
        ("undecodable", raw("a", 6, labels=5)),
        ("undecodable", raw("a", 6, colour=5)),
    ],
)
@pytest.mark.parametrize("type_", ["ADDED", "MODIFIED", "DELETED"])
async def test_what_cannot_be_read_leaves_no_ghost_and_no_old_state(reason, bad, type_):
    """R28, R33: a list would leave it out too."""
    before = skipped(reason)
    scene = Scene()
    scene.kube.feeds.append(Feed(added("a", 1), line(type_, bad), MARKED, line(type_, bad)))
    async with scene.running():
        assert scene.sink.seen == ["list ", "drop a 6"]
    assert skipped(reason) == before + 2


async def test_a_type_of_event_we_do_not_know_is_skipped():
    """R28."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, line("NEWS", raw("x", 6)), added("a", 7)))
    async with scene.running():
        assert scene.sink.seen == ["list ", "ADDED a 7"]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":{"kind":"Thi}',
        b'{"type":"BOOKMARK","object":{}}',
        b'{"type":"BOOKMARK","object":{"metadata":{}}}',
    ],
)
async def test_a_line_that_is_no_event_restarts_the_watch_with_backoff(bad):
    """W7: from the last version, and nothing of the line is stored."""
    scene = Scene()
    scene.kube.feeds.append(Feed(MARKED, added("a", 6), bad, added("b", 7)))
    async with scene.running():
        assert scene.sink.seen == ["list ", "ADDED a 6"]
        await scene.clock.advance(0.8)
        assert scene.kube.asked == ["stream -", "watch 6"]


async def test_items_of_built_in_lists_need_no_kind():
    """W25."""
    scene = Scene()
    scene.kube.feeds.append(InvalidRequest("no", status=422))
    bare = dump({"metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "1"}})
    scene.kube.pages.append(Page([bare], "5"))
    async with scene.running():
        assert scene.sink.seen == ["list a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (added("a", 1), ("ADDED", raw("a", 1))),
        (modified("a", 1), ("MODIFIED", raw("a", 1))),
        (deleted("a", 1), ("DELETED", raw("a", 1))),
        (b'{"object":{"a":1},"type":"ADDED"}', ("ADDED", b'{"a":1}')),
        (b'{"type": "ADDED", "object": {"a":1}} ', ("ADDED", b'{"a":1}')),
    ],
)
def test_a_line_is_cut_or_parsed_to_the_same_end(text, expected):
    """R34: the cut is a shortcut, not another grammar."""
    assert Decoder(THINGS, clock=FakeClock(), metadata_only=False).split(text) == expected


def test_kubectls_copy_of_the_manifest_is_not_kept():
    """R33: as large as the object it is on; other annotations stay."""
    copy = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "1"}
    metadata = {"name": "a", "uid": "u", "resourceVersion": "5", "annotations": copy}
    body = dump({"kind": "Thing", "apiVersion": "ex.io/v1", "metadata": metadata})
    for kind in (THINGS, replace(THINGS, decode=decode_owned)):
        obj = Decoder(kind, clock=FakeClock(), metadata_only=False).decode(body)
        assert obj is not None
        assert obj.metadata.annotations == {"mine": "1"}
    assert obj.body["metadata"]["annotations"] == {"mine": "1"}
