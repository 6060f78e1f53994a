"""V1 to V9: Events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from kaito.api.meta import ObjectRef
from kaito.controller.events import COMBINED, EVENTS, QUEUE_LIMIT, TABLE_LIMIT, EventRecorder
from kaito.errors import (
    Forbidden,
    InvalidSettings,
    NotLeader,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
)
from kaito.kube.client import KubeClient
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.fakes import FakeApiServer, FakeClient

PHI = ObjectRef("kaito.sh/v1alpha1", "Workspace", "default", "phi", "uid-phi")


class Desk:
    """A recorder on a fake API server."""

    def __init__(self, clock: FakeClock, instance: str = "pod-1") -> None:
        self.server = FakeApiServer()
        self.client = FakeClient(self.server)
        self.recorder = EventRecorder(
            cast(KubeClient, self.client),
            clock=clock,
            controller="kaito.sh/workspace",
            instance=instance,
            uniform=lambda: 0.0,
        )

    def say(self, note: str = "hello", reason: str = "Launched", about: ObjectRef = PHI) -> None:
        self.recorder.record(about, "Normal", reason, "Launch", note)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [o for (plural, _, _), o in self.server.objects.items() if plural == "events"]

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        with capture_logs():
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self.recorder.run())
                await settle()
                yield
                await settle()
                task.cancel()


@pytest.fixture
def desk(clock: FakeClock) -> Desk:
    return Desk(clock)


def sent(outcome: str) -> float:
    return REGISTRY.get_sample_value("events_sent_total", {"outcome": outcome}) or 0


async def test_an_event_says_who_did_what_to_which(desk: Desk, clock: FakeClock) -> None:
    """V1, V5, V7"""
    before = sent("created")
    async with desk.sending():
        desk.say()
    assert sent("created") == before + 1
    event = desk.events[0]
    assert event["metadata"].pop("resourceVersion")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": "default", "name": f"phi.{int(clock.now() * 1e9):x}"},
        "eventTime": "2027-01-15T08:00:00.000000Z",
        "reportingController": "kaito.sh/workspace",
        "reportingInstance": "pod-1",
        "regarding": {
            "apiVersion": "kaito.sh/v1alpha1",
            "kind": "Workspace",
            "namespace": "default",
            "name": "phi",
            "uid": "uid-phi",
        },
        "type": "Normal",
        "reason": "Launched",
        "action": "Launch",
        "note": "hello",
    }


async def test_said_twice_it_is_a_series_and_then_only_counted(
    desk: Desk, clock: FakeClock
) -> None:
    """V1, V8: create, patch, no request per run; written each 30 min and when silent for 6."""
    async with desk.sending():
        desk.say()
        await clock.advance(30)
        desk.say()
        await settle()
        assert desk.server.calls == ["POST", "PATCH"]
        assert desk.events[0]["series"] == {
            "count": 2,
            "lastObservedTime": "2027-01-15T08:00:30.000000Z",
        }
        for _ in range(58):
            await clock.advance(30)
            desk.say()
        assert len(desk.server.calls) == 2
        await clock.advance(90)
        desk.say()
        assert len(desk.server.calls) == 3
        await clock.advance(240)
        assert len(desk.server.calls) == 3
        await clock.advance(180)
        assert len(desk.server.calls) == 4
        assert desk.events[0]["series"]["count"] == 61
        assert desk.recorder._series == {}
        assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_a_single_event_is_forgotten_after_six_minutes(desk: Desk, clock: FakeClock) -> None:
    """V1"""
    async with desk.sending():
        desk.say()
        await clock.advance(420)
        desk.say()
    assert desk.server.calls == ["POST", "POST"]


async def test_two_before_the_sender_ran_are_create_and_patch(desk: Desk) -> None:
    """V1"""
    desk.say()
    desk.say()
    desk.say()
    async with desk.sending():
        await settle()
    assert desk.server.calls == ["POST", "PATCH"]
    assert desk.events[0]["series"]["count"] == 3


async def test_record_never_waits_and_drops_what_is_too_much(desk: Desk) -> None:
    """V2: a queue of 1,000."""
    before = sent("dropped_full"), sent("created")
    for i in range(QUEUE_LIMIT + 5):
        desk.say(about=ObjectRef("v1", "Pod", "default", f"p{i}"))
    assert desk.server.calls == []
    assert sent("dropped_full") == before[0] + 5
    async with desk.sending():
        await settle()
    assert sent("created") == before[1] + QUEUE_LIMIT


@pytest.mark.parametrize(
    "error", [TransportError("reset"), TooManyRequests("slow"), ServerUnavailable("503")]
)
async def test_what_may_pass_is_tried_again_every_ten_seconds(
    desk: Desk, clock: FakeClock, error: Exception
) -> None:
    """V3: 12 tries, then dropped and counted; the next one goes out."""
    before = sent("failed")

    def fail(_: str) -> None:
        raise error

    desk.client.before = fail
    async with desk.sending():
        desk.say("lost")
        await clock.advance(109)
        assert len(desk.server.calls) == 11
        await clock.advance(15)
        assert len(desk.server.calls) == 12
        assert sent("failed") == before + 1
        desk.client.before = None
        desk.say("next")
    assert [event["note"] for event in desk.events] == ["next"]


async def test_events_that_fail_do_not_hold_up_the_others(desk: Desk, clock: FakeClock) -> None:
    """V2, V3: a webhook that refuses one namespace costs the other namespaces nothing."""
    refused = 0

    def refuse(_: str) -> None:
        nonlocal refused
        refused += 1
        if refused <= 5:
            raise ServerUnavailable("the webhook of that namespace", status=500)

    desk.client.before = refuse
    async with desk.sending():
        for i in range(5):
            desk.say(f"bad {i}")
        desk.say("good")
        await settle()
        assert [event["note"] for event in desk.events] == ["good"]
        await clock.advance(10)
    assert len(desk.events) == 6


async def test_a_delayed_event_is_one_event_however_often_it_is_said(
    desk: Desk, clock: FakeClock
) -> None:
    """V1, V3: the count goes with the next try."""
    fails = iter([TransportError("reset")])

    def lose(_: str) -> None:
        if error := next(fails, None):
            raise error

    desk.client.before = lose
    async with desk.sending():
        desk.say()
        await settle()
        desk.say()
        desk.say()
        await settle()
        assert desk.server.calls == ["POST"]
        await clock.advance(10)
        assert desk.server.calls == ["POST", "POST", "PATCH"]
    assert desk.events[0]["series"]["count"] == 3


async def test_half_a_character_is_told_as_a_question_mark(desk: Desk) -> None:
    """V2, V4: a lone surrogate in an error's text has no bytes."""
    async with desk.sending():
        desk.say("what \ud800 is", reason="Odd\udfff")
    assert [(e["note"], e["reason"]) for e in desk.events] == [("what ? is", "Odd?")]


def test_every_outcome_is_there_from_the_start() -> None:
    """M12"""
    for outcome in ("created", "patched", "dropped_full", "dropped_spam", "failed"):
        assert REGISTRY.get_sample_value("events_sent_total", {"outcome": outcome}) is not None


@pytest.mark.parametrize("error", [Forbidden("no"), NotLeader("fenced")])
async def test_what_is_refused_is_dropped(desk: Desk, error: Exception) -> None:
    """V3, V9"""
    before = sent("failed")

    def fail(_: str) -> None:
        raise error

    desk.client.before = fail
    async with desk.sending():
        desk.say()
    assert desk.server.calls == ["POST"]
    assert sent("failed") == before + 1


async def test_a_series_whose_event_expired_is_created_anew(desk: Desk, clock: FakeClock) -> None:
    """V3: PATCH 404 → create, with the count."""
    async with desk.sending():
        desk.say()
        await settle()
        desk.server.objects.clear()
        desk.say()
    assert desk.server.calls == ["POST", "PATCH", "POST"]
    assert desk.events[0]["series"]["count"] == 2


async def test_an_event_that_arrived_without_an_answer_is_patched(
    desk: Desk, clock: FakeClock
) -> None:
    """V3: AlreadyExists on a series → PATCH."""
    fails = iter([TransportError("reset")])

    def lose(_: str) -> None:
        if error := next(fails, None):
            raise error

    desk.client.after = lose
    async with desk.sending():
        desk.say()
        desk.say()
        await clock.advance(10)
    assert desk.server.calls == ["POST", "POST", "PATCH"]
    assert desk.events[0]["series"]["count"] == 2


async def test_long_words_are_cut_between_characters(clock: FakeClock) -> None:
    """V4: on a UTF-8 boundary."""
    desk = Desk(clock, instance="é" * 100)
    async with desk.sending():
        desk.say("ü" * 511 + "x" + "€")
        desk.recorder.record(PHI, "Warning", "R" * 200, "A" * 200, "note")
    notes, words = sorted(desk.events, key=lambda event: event["reason"])
    assert notes["note"] == "ü" * 511 + "x"
    assert notes["reportingInstance"] == "é" * 64
    assert (len(words["reason"]), len(words["action"])) == (128, 128)


@pytest.mark.parametrize(
    ("type_", "reason", "action"), [("Normal", "", "A"), ("Warning", "R", ""), ("Error", "R", "A")]
)
async def test_what_the_server_would_refuse_is_not_sent(
    desk: Desk, type_: Any, reason: str, action: str
) -> None:
    """V2, V4: told in the log and counted, never raised."""
    before = sent("failed")
    with capture_logs() as logs:
        desk.recorder.record(PHI, type_, reason, action, "note")
    assert logs[0]["log_level"] == "error"
    assert sent("failed") == before + 1
    async with desk.sending():
        await settle()
    assert desk.server.calls == []


@pytest.mark.parametrize(("controller", "instance"), [("", "pod"), ("kaito.sh/x", "")])
def test_a_recorder_without_a_name_is_refused(
    clock: FakeClock, controller: str, instance: str
) -> None:
    """V4"""
    with pytest.raises(InvalidSettings):
        EventRecorder(cast(KubeClient, None), clock=clock, controller=controller, instance=instance)


async def test_what_an_event_is_related_to_tells_it_apart(desk: Desk) -> None:
    """V1: part of the key, and sent."""
    node = ObjectRef("v1", "Node", "", "n1", "uid-n1")
    async with desk.sending():
        for related in (None, node, node):
            desk.recorder.record(PHI, "Normal", "Launched", "Launch", "hello", related=related)
        await settle()
    assert desk.server.calls == ["POST", "POST", "PATCH"]
    assert "related" not in desk.events[0]
    assert desk.events[1]["related"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "n1",
        "uid": "uid-n1",
    }


@pytest.mark.parametrize(
    "other", [{"type": "Warning"}, {"reason": "R"}, {"action": "A"}, {"regarding": "other"}]
)
async def test_each_word_of_the_key_tells_events_apart(desk: Desk, other: dict[str, str]) -> None:
    """V1"""
    words: dict[str, Any] = {"type": "Normal", "reason": "Launched", "action": "Launch"}
    about = ObjectRef("v1", "Pod", "default", "other") if "regarding" in other else PHI
    async with desk.sending():
        desk.recorder.record(PHI, note="hello", **words)
        desk.recorder.record(
            about, note="hello", **words | {k: v for k, v in other.items() if k in words}
        )
        await settle()
    assert desk.server.calls == ["POST", "POST"]


async def test_names_are_unique_and_fit(desk: Desk) -> None:
    """V5: cluster-scoped objects' events are in default."""
    node = ObjectRef("v1", "Node", "", "n" * 240 + "." * 13)
    async with desk.sending():
        desk.say("one", about=node)
        desk.say("two", about=node)
    names = [event["metadata"]["name"] for event in desk.events]
    assert len(set(names)) == 2
    assert all(len(name) <= 253 and ".." not in name for name in names)
    assert {event["metadata"]["namespace"] for event in desk.events} == {"default"}
    assert "namespace" not in desk.events[0]["regarding"]


async def test_an_object_gets_25_events_and_then_one_each_five_minutes(
    desk: Desk, clock: FakeClock
) -> None:
    """V6"""
    before = sent("dropped_spam")
    async with desk.sending():
        for i in range(30):
            desk.say(reason=f"R{i}")
        desk.say(about=ObjectRef("v1", "Pod", "default", "other"))
        await settle(60)
        assert len(desk.events) == 26
        assert sent("dropped_spam") == before + 5
        await clock.advance(300)
        desk.say(reason="R100")
        desk.say(reason="R101")
    assert len(desk.events) == 27


async def test_ten_distinct_messages_become_one(desk: Desk, clock: FakeClock) -> None:
    """V6: from the 10th on, of one object and reason, within ten minutes."""
    async with desk.sending():
        for i in range(15):
            desk.say(f"try {i}")
        await settle(60)
        notes = [event["note"] for event in desk.events]
        assert notes == [*(f"try {i}" for i in range(9)), f"{COMBINED}try 9"]
        assert desk.events[-1]["series"]["count"] == 6
        await clock.advance(601)
        desk.say("try 99")
    assert desk.events[-1]["note"] == "try 99"


async def test_the_least_recently_used_are_forgotten_first(desk: Desk) -> None:
    """V6"""
    async with desk.sending():
        for i in range(TABLE_LIMIT + 10):
            desk.say(about=PHI)
            desk.say(about=ObjectRef("v1", "Pod", "default", f"p{i}"))
            if i % 200 == 0:
                await settle(5)
    assert len([e for e in desk.events if e["regarding"]["name"] == "phi"]) == 1


async def test_tables_are_bounded(desk: Desk) -> None:
    """V6: 4,096 least recently used."""
    async with desk.sending():
        for i in range(TABLE_LIMIT + 100):
            desk.say(about=ObjectRef("v1", "Pod", "default", f"p{i}"))
            if i % 500 == 0:
                await settle(5)
    recorder = desk.recorder
    assert len(recorder._buckets) == len(recorder._notes) == TABLE_LIMIT
    assert len(recorder._series) <= TABLE_LIMIT


async def test_flush_waits_for_the_rest_and_its_counts(desk: Desk, clock: FakeClock) -> None:
    """V9"""
    async with desk.sending():
        desk.say()
        desk.say()
        await settle()
        desk.say()
        desk.say("more")
        async with asyncio.TaskGroup() as group:
            group.create_task(desk.recorder.flush(5))
        assert desk.server.calls == ["POST", "PATCH", "POST", "PATCH"]
        assert desk.events[0]["series"]["count"] == 3


async def test_flush_gives_up_in_time(desk: Desk, clock: FakeClock) -> None:
    """V9: 5 s at most."""
    desk.client.before = lambda _: clock.sleep(1000)
    async with desk.sending():
        desk.say()
        async with asyncio.TaskGroup() as group:
            flush = group.create_task(desk.recorder.flush(5))
            await clock.advance(4.9)
            assert not flush.done()
            await clock.advance(0.2)
            assert flush.done()


async def test_flush_tries_once_what_waits_for_its_next_try(desk: Desk, clock: FakeClock) -> None:
    """V9: it is not waited for; the second event would not come before the timeout."""

    def fail(_: str) -> None:
        raise TransportError("reset")

    desk.client.before = fail
    async with desk.sending():
        desk.say("one")
        await settle()
        async with asyncio.TaskGroup() as group:
            group.create_task(desk.recorder.flush(5))
        assert desk.server.calls == ["POST", "POST"]
    assert all(timer.callback is None for _, _, timer in clock._timers)


def test_the_decoder_reads_what_an_answer_needs() -> None:
    """V1"""
    assert EVENTS.decode(b'{"metadata":{"name":"a"},"note":"x"}').metadata.name == "a"
