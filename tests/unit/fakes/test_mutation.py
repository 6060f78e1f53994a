"""The mutation detector catches who writes to a cache, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from kaito.api.meta import ObjectMeta, Owned
from kaito.api.views import decode_owned
from kaito.api.workspace import Workspace
from kaito.informers.informer import Informer
from kaito.kube.resources import Kind
from tests.fakes.clock import FakeClock, settle
from tests.fakes.kube import FakeKube
from tests.fakes.mutation import MutationDetector, WatchedInformerSet, current

DEPLOYMENTS = Kind("apps", "v1", "Deployment", "deployments", True, decode_owned)


def deployment(**spec: object) -> Owned:
    metadata = {"name": "web", "namespace": "ns", "uid": "u", "labels": {"app": "web"}}
    return decode_owned(orjson.dumps({"metadata": metadata, "spec": spec}))


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (lambda o: o.metadata.labels.update(app="mine"), "metadata.labels.app was 'web'"),
        (lambda o: o.metadata.labels.update(new="x"), "metadata.labels.new was '<absent>'"),
        (lambda o: o.metadata.labels.clear(), "metadata.labels.app was 'web', is '<absent>'"),
        (lambda o: o.body["spec"].update(replicas=2), "body.spec.replicas was 1, is 2"),
        (lambda o: o.body["spec"]["args"].append("b"), "body.spec.args[1] was '<absent>', is 'b'"),
        (lambda o: o.body["spec"].update(replicas=True), "body.spec.replicas was 1, is True"),
    ],
    ids=["label", "new label", "no labels", "body", "list in a body", "true for one"],
)
def test_a_write_to_a_stored_object_is_told_with_kind_key_and_path(wrong, path):
    """S2."""
    detector, obj = MutationDetector(), deployment(replicas=1, args=["a"])
    detector.note(DEPLOYMENTS, obj)
    wrong(obj)
    with pytest.raises(AssertionError, match=r"deployments\.apps ns/web: ") as caught:
        detector.check()
    assert path in str(caught.value)


def test_a_model_of_ours_is_looked_into_too():
    """S2: pydantic's models are frozen, but what they hold may be dicts."""
    workspace = Workspace(metadata=ObjectMeta(name="phi", labels={"a": "b"}))
    detector = MutationDetector()
    detector.note("workspaces.kaito.sh", workspace)
    workspace.metadata.labels["a"] = "c"
    with pytest.raises(AssertionError, match=r"phi: metadata\.labels\.a was 'b', is 'c'"):
        detector.check()


def test_who_only_reads_is_not_blamed():
    detector, obj = MutationDetector(), deployment(replicas=1)
    detector.note(DEPLOYMENTS, obj)
    detector.note(DEPLOYMENTS, obj)
    assert dict(obj.metadata.labels) | {"app": "mine"}
    detector.check()


@pytest.mark.parametrize("life", ["stored", "updated", "deleted"])
async def test_an_informers_store_is_followed_to_the_end_of_each_object(life):
    """S2: also of one that the store let go meanwhile."""
    kube, detector = FakeKube(clock=FakeClock()), MutationDetector()
    kube.seed(DEPLOYMENTS, {"metadata": {"name": "web", "namespace": "ns"}, "spec": {"x": 1}})
    informer = Informer(kube, DEPLOYMENTS, clock=FakeClock())
    detector.follow(informer)
    async with _running(informer):
        found = informer.lister.get("ns", "web")
        assert found is not None
        found.body["spec"]["x"] = 2
        if life == "updated":
            await kube.merge_patch(DEPLOYMENTS, "ns", "web", {"spec": {"y": 1}})
        elif life == "deleted":
            await kube.delete(DEPLOYMENTS, "ns", "web")
        await settle()
    with pytest.raises(
        AssertionError, match=r"deployments\.apps ns/web: body\.spec\.x was 1, is 2"
    ):
        detector.check()


async def test_every_informer_of_a_watched_set_is_followed_once():
    kube = FakeKube(clock=FakeClock())
    informers = WatchedInformerSet(kube, clock=FakeClock())
    informer = informers.informer(DEPLOYMENTS)
    assert informers.informer(DEPLOYMENTS) is informer
    kube.seed(DEPLOYMENTS, {"metadata": {"name": "web", "namespace": "ns"}})
    async with _running(informer):
        obj = informer.lister.list()[0]
        obj.metadata.labels["a"] = "b"
    with pytest.raises(AssertionError, match=r"labels\.a was '<absent>', is 'b'"):
        current().check()


@asynccontextmanager
async def _running(informer: Informer[Any]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(informer.run())
        await settle()
        yield
        task.cancel()
