"""Events against a real API server: what it accepts, and how kubectl's view of them looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from kaito.api.meta import ObjectMeta, ObjectRef
from kaito.clock import SystemClock
from kaito.controller.events import EventRecorder
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

pytestmark = pytest.mark.controlplane


class CoreEvent:
    """An Event as core/v1 shows it, which is what kubectl reads."""

    def __init__(self, raw: bytes) -> None:
        self.body: Mapping[str, Any] = msgspec.json.decode(raw)
        self.metadata = msgspec.convert(self.body["metadata"], ObjectMeta)


CORE_EVENTS: Kind[CoreEvent] = Kind("", "v1", "Event", "events", True, CoreEvent)


@asynccontextmanager
async def recorder(kube: KubeClient) -> AsyncIterator[EventRecorder]:
    """A recorder that sends; flushed in the end."""
    made = EventRecorder(kube, clock=SystemClock(), controller="kaito.sh/test", instance="pod-1")
    async with asyncio.TaskGroup() as group:
        sender = group.create_task(made.run())
        yield made
        await made.flush(10)
    assert sender.done()


async def events_of(kube: KubeClient, namespace: str, name: str) -> list[Mapping[str, Any]]:
    found = await kube.list(
        CORE_EVENTS, namespace=namespace, field_selector=f"involvedObject.name={name}"
    )
    return [event.body for event in found]


async def test_kubectl_describe_finds_what_was_recorded(real_kube: KubeClient) -> None:
    """V1, V7: found by the object's uid, with reason, message, reporter and series."""
    regarding = ObjectRef("v1", "ConfigMap", "default", "described", "uid-1")
    async with recorder(real_kube) as made:
        for _ in range(3):
            made.record(regarding, "Normal", "Launched", "Launch", "hello")
    (event,) = await events_of(real_kube, "default", "described")
    assert event["involvedObject"]["uid"] == "uid-1"
    assert (event["type"], event["reason"], event["message"]) == ("Normal", "Launched", "hello")
    assert event["reportingComponent"] == "kaito.sh/test"
    assert event["reportingInstance"] == "pod-1"
    assert event["eventTime"]
    assert event["series"]["count"] == 3


async def test_a_cluster_scoped_object_has_its_events_in_default(real_kube: KubeClient) -> None:
    """V5"""
    async with recorder(real_kube) as made:
        node = ObjectRef("v1", "Node", "", "node-1", "uid-2")
        made.record(node, "Warning", "NotReady", "Observe", "gone")
    (event,) = await events_of(real_kube, "default", "node-1")
    assert event["type"] == "Warning"


async def test_the_longest_words_are_accepted(real_kube: KubeClient) -> None:
    """V4: everything is cut to what the server takes."""
    before = REGISTRY.get_sample_value("events_sent_total", {"outcome": "failed"}) or 0
    name = "n" * 253
    regarding = ObjectRef("v1", "ConfigMap", "default", name, "uid-3")
    async with recorder(real_kube) as made:
        made.record(regarding, "Normal", "R" * 200, "A" * 200, "ü" * 2000)
    assert (REGISTRY.get_sample_value("events_sent_total", {"outcome": "failed"}) or 0) == before
    (event,) = await events_of(real_kube, "default", name)
    assert len(event["message"].encode()) == 1024


async def told(kube: KubeClient, name: str) -> Mapping[str, Any]:
    """The one event of an object, once it is there."""
    async with asyncio.timeout(20):
        while not (found := await events_of(kube, "default", name)):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)
    (event,) = found
    return event


async def test_an_event_that_was_deleted_is_told_again(real_kube: KubeClient) -> None:
    """V3: PATCH 404 → create."""
    regarding = ObjectRef("v1", "ConfigMap", "default", "expired", "uid-4")
    async with recorder(real_kube) as made:
        made.record(regarding, "Normal", "Launched", "Launch", "hello")
        event = await told(real_kube, "expired")
        await real_kube.delete(CORE_EVENTS, "default", event["metadata"]["name"])
        made.record(regarding, "Normal", "Launched", "Launch", "hello")
    (event,) = await events_of(real_kube, "default", "expired")
    assert event["series"]["count"] == 2


async def test_what_it_is_related_to_is_shown_and_no_note_is_no_fault(
    real_kube: KubeClient,
) -> None:
    """V1, V4"""
    regarding = ObjectRef("v1", "ConfigMap", "default", "related", "uid-5")
    node = ObjectRef("v1", "Node", "", "node-1", "uid-2")
    async with recorder(real_kube) as made:
        made.record(regarding, "Normal", "Launched", "Launch", "", related=node)
    (event,) = await events_of(real_kube, "default", "related")
    assert event["related"] == {
        "apiVersion": "v1",
        "kind": "Node",
        "name": "node-1",
        "uid": "uid-2",
    }
