"""What FakeKube offers beside KubeClient's methods: faults, lost answers, ended watches."""

from __future__ import annotations

import json

import pytest

from kaito.errors import KindNotServed, ServerUnavailable, TransportError
from kaito.kube.client import Written
from tests.fakes.kube import Call, FakeKube
from tests.unit.kube.test_client import MACHINES, PODS, pod


async def test_a_fault_answers_as_often_as_arranged() -> None:
    kube = FakeKube()
    kube.fail("cre*", PODS, ServerUnavailable("no"), times=2)
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            await kube.create(PODS, pod())
    await kube.create(PODS, pod())
    assert [call.method for call in kube.writes()] == ["create"] * 3
    assert kube.calls[0] == Call("create", "pods", "n", "p", pod())


async def test_an_answer_may_be_lost_and_the_work_done() -> None:
    """A1"""
    told: list[Written] = []
    kube = FakeKube(on_written=told.append)
    kube.fail("create", None, TransportError("cut"), applied=True)
    with pytest.raises(TransportError):
        await kube.create(PODS, pod())
    assert kube.body(PODS, "n", "p") is not None
    assert told == [Written(PODS, "n", "p", "", None)]


async def test_a_kind_may_be_missing() -> None:
    kube = FakeKube()
    kube.not_served.add(MACHINES.resource)
    assert not await kube.is_served(MACHINES)
    with pytest.raises(KindNotServed):
        await kube.list(MACHINES)


async def test_watches_end_or_are_cut_or_have_expired() -> None:
    kube = FakeKube()
    made = kube.seed(PODS, pod())
    query = {"resourceVersion": made.metadata.resource_version}
    async with kube.watch(PODS, namespace="", query=query, idle_seconds=1) as lines:
        kube.end_watches()
        assert [line async for line in lines] == []
    async with kube.watch(PODS, namespace="", query=query, idle_seconds=1) as lines:
        kube.end_watches(TransportError("cut"))
        with pytest.raises(TransportError):
            await anext(lines)
    kube.seed(PODS, pod("q"))
    kube.compact()
    async with kube.watch(PODS, namespace="", query=query, idle_seconds=1) as lines:
        (line,) = [line async for line in lines]
    assert json.loads(line)["object"]["code"] == 410


async def test_pods_are_bound_and_evicted() -> None:
    kube = FakeKube()
    kube.seed(PODS, pod())
    await kube.create_subresource(PODS, "n", "p", "binding", {"target": {"name": "node"}})
    (bound,) = await kube.list(PODS, field_selector="spec.nodeName=node")
    assert bound.metadata.name == "p"
    await kube.create_subresource(PODS, "n", "p", "eviction", {})
    assert kube.bodies(PODS) == []
