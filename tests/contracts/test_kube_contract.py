"""What KubeClient promises, held against the fake and against a real API server alike."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_owned
from kaito.errors import (
    AlreadyExists,
    ApplyConflict,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    PatchTestFailed,
)
from kaito.kube.client import KubeClient, Written
from kaito.kube.errors import owners
from kaito.kube.resources import Kind
from tests.fakes.kube import FakeKube

CONFIGMAPS: Kind[Owned] = Kind("", "v1", "ConfigMap", "configmaps", True, decode_owned)
NAMESPACES: Kind[Owned] = Kind("", "v1", "Namespace", "namespaces", False, decode_owned)
PODS: Kind[Owned] = Kind("", "v1", "Pod", "pods", True, decode_owned)

FINALIZER = "kaito.sh/test"


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.controlplane)])
def kube(request: pytest.FixtureRequest) -> KubeClient | FakeKube:
    return FakeKube() if request.param == "fake" else request.getfixturevalue("real_kube")


@pytest.fixture
async def namespace(kube: KubeClient) -> AsyncIterator[str]:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    await kube.create(
        NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    )
    yield name
    await kube.delete(NAMESPACES, "", name)


def configmap(namespace: str, name: str = "a", **changes: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, **changes.pop("metadata", {})}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"x": "1"},
        **changes,
    }


def data(obj: Owned | None) -> Any:
    assert obj is not None
    return obj.body.get("data")


async def test_an_object_that_is_not_there_is_none(kube: KubeClient, namespace: str) -> None:
    """W10"""
    assert await kube.get(CONFIGMAPS, namespace, "nope") is None


async def test_a_created_object_is_read_back(kube: KubeClient, namespace: str) -> None:
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    read = await kube.get(CONFIGMAPS, namespace, "a")
    assert read is not None
    assert read.metadata == made.metadata
    assert made.metadata.uid
    assert made.metadata.creation_timestamp.endswith("Z")


async def test_the_server_gives_the_uid(kube: KubeClient, namespace: str) -> None:
    asked = str(uuid.uuid4())
    made = await kube.create(CONFIGMAPS, configmap(namespace, metadata={"uid": asked}))
    assert made.metadata.uid not in ("", asked)


async def test_creating_a_name_twice_already_exists(kube: KubeClient, namespace: str) -> None:
    """W12, G13"""
    await kube.create(CONFIGMAPS, configmap(namespace))
    with pytest.raises(AlreadyExists):
        await kube.create(CONFIGMAPS, configmap(namespace, data={"x": "2"}))
    assert data(await kube.get(CONFIGMAPS, namespace, "a")) == {"x": "1"}


async def test_generated_names_differ(kube: KubeClient, namespace: str) -> None:
    """A18"""
    manifest = {**configmap(namespace), "metadata": {"generateName": "g-", "namespace": namespace}}
    names = {(await kube.create(CONFIGMAPS, manifest)).metadata.name for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("g-") for name in names)


async def test_each_change_has_a_higher_version_and_a_no_op_keeps_it(
    kube: KubeClient, namespace: str
) -> None:
    """A7"""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    changed = await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {"x": "2"}})
    same = await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {"x": "2"}})
    assert int(changed.metadata.resource_version) > int(made.metadata.resource_version)
    assert same.metadata.resource_version == changed.metadata.resource_version


async def test_apply_creates_then_changes(kube: KubeClient, namespace: str) -> None:
    """A5"""
    first = await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m")
    second = await kube.apply(CONFIGMAPS, configmap(namespace, data={"x": "2"}), field_manager="m")
    assert first.metadata.uid == second.metadata.uid
    assert data(second) == {"x": "2"}


async def test_a_field_left_out_of_the_next_apply_goes(kube: KubeClient, namespace: str) -> None:
    """A7"""
    await kube.apply(CONFIGMAPS, configmap(namespace, data={"x": "1", "y": "1"}), field_manager="m")
    after = await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m")
    assert data(after) == {"x": "1"}


async def test_a_field_of_another_manager_stays(kube: KubeClient, namespace: str) -> None:
    """A5: only own fields."""
    await kube.apply(CONFIGMAPS, configmap(namespace, data={"y": "1"}), field_manager="other")
    after = await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m")
    assert data(after) == {"x": "1", "y": "1"}


async def test_apply_without_force_names_the_fields_of_others(
    kube: KubeClient, namespace: str
) -> None:
    """W12, A8"""
    await kube.apply(CONFIGMAPS, configmap(namespace, data={"x": "2"}), field_manager="other")
    with pytest.raises(ApplyConflict) as caught:
        await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m", force=False)
    assert owners(caught.value) == (("other", ".data.x"),)
    forced = await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m")
    assert data(forced) == {"x": "1"}


async def test_apply_with_a_uid_never_revives(kube: KubeClient, namespace: str) -> None:
    """A6, G12"""
    with pytest.raises(Conflict):
        await kube.apply(CONFIGMAPS, configmap(namespace), field_manager="m", uid=str(uuid.uuid4()))
    assert await kube.get(CONFIGMAPS, namespace, "a") is None


async def test_apply_at_an_old_version_is_a_conflict(kube: KubeClient, namespace: str) -> None:
    """G12: and at the live one it is carried out, or changes nothing and keeps the version."""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    seen = made.metadata.resource_version

    def at(version: str, **data: str) -> dict[str, Any]:
        body = configmap(namespace, data=data)
        return {**body, "metadata": {**body["metadata"], "resourceVersion": version}}

    changed = await kube.apply(CONFIGMAPS, at(seen, x="2"), field_manager="m")
    again = await kube.apply(
        CONFIGMAPS, at(changed.metadata.resource_version, x="2"), field_manager="m"
    )
    assert again.metadata.resource_version == changed.metadata.resource_version
    with pytest.raises(Conflict):
        await kube.apply(CONFIGMAPS, at(seen, x="3"), field_manager="m")


async def test_apply_with_another_uid_changes_nothing(kube: KubeClient, namespace: str) -> None:
    """A6, G12"""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    other = configmap(namespace, data={"x": "2"})
    with pytest.raises(Conflict):
        await kube.apply(CONFIGMAPS, other, field_manager="m", uid=str(uuid.uuid4()))
    after = await kube.apply(CONFIGMAPS, other, field_manager="m", uid=made.metadata.uid)
    assert data(after) == {"x": "2"}


async def test_a_merge_patch_merges_and_null_removes(kube: KubeClient, namespace: str) -> None:
    await kube.create(CONFIGMAPS, configmap(namespace, data={"x": "1", "y": "1"}))
    after = await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {"x": None, "z": "1"}})
    assert data(after) == {"y": "1", "z": "1"}


@pytest.mark.parametrize("field", ["uid", "resourceVersion"])
async def test_a_merge_patch_meant_for_another_state_conflicts(
    kube: KubeClient, namespace: str, field: str
) -> None:
    """G12"""
    await kube.create(CONFIGMAPS, configmap(namespace))
    body = {"metadata": {field: "1"}, "data": {"x": "2"}}
    with pytest.raises(Conflict):
        await kube.merge_patch(CONFIGMAPS, namespace, "a", body)
    assert data(await kube.get(CONFIGMAPS, namespace, "a")) == {"x": "1"}


async def test_patches_of_a_missing_object_are_not_found(kube: KubeClient, namespace: str) -> None:
    with pytest.raises(NotFound):
        await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {}})
    with pytest.raises(NotFound):
        await kube.json_patch(CONFIGMAPS, namespace, "a", [])


async def test_a_json_patch_tests_and_removes(kube: KubeClient, namespace: str) -> None:
    """A16"""
    manifest = configmap(namespace, metadata={"finalizers": ["kaito.sh/other", FINALIZER]})
    made = await kube.create(CONFIGMAPS, manifest)
    after = await kube.json_patch(
        CONFIGMAPS,
        namespace,
        "a",
        [
            {"op": "test", "path": "/metadata/uid", "value": made.metadata.uid},
            {"op": "test", "path": "/metadata/finalizers/1", "value": FINALIZER},
            {"op": "remove", "path": "/metadata/finalizers/1"},
        ],
    )
    assert after.metadata.finalizers == ("kaito.sh/other",)
    await kube.json_patch(
        CONFIGMAPS, namespace, "a", [{"op": "remove", "path": "/metadata/finalizers"}]
    )


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/metadata/uid", "value": "another"},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ],
)
async def test_a_json_patch_that_does_not_hold_changes_nothing(
    kube: KubeClient, namespace: str, operation: dict[str, Any]
) -> None:
    """W12"""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    with pytest.raises(PatchTestFailed):
        await kube.json_patch(
            CONFIGMAPS,
            namespace,
            "a",
            [{"op": "replace", "path": "/data/x", "value": "2"}, operation],
        )
    assert await kube.get(CONFIGMAPS, namespace, "a") == made


async def test_a_replace_needs_the_current_version(kube: KubeClient, namespace: str) -> None:
    """A12"""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    version = {"resourceVersion": made.metadata.resource_version}
    after = await kube.replace(CONFIGMAPS, configmap(namespace, metadata=version, data={"y": "1"}))
    assert data(after) == {"y": "1"}
    with pytest.raises(Conflict):
        await kube.replace(CONFIGMAPS, configmap(namespace, metadata=version))
    with pytest.raises(InvalidRequest):
        await kube.replace(CONFIGMAPS, configmap(namespace))


async def test_a_delete_is_done_when_nothing_is_left(kube: KubeClient, namespace: str) -> None:
    """A14"""
    await kube.create(CONFIGMAPS, configmap(namespace))
    assert await kube.delete(CONFIGMAPS, namespace, "a") is None
    assert await kube.delete(CONFIGMAPS, namespace, "a") is None
    assert await kube.get(CONFIGMAPS, namespace, "a") is None


async def test_a_delete_meant_for_another_object_conflicts(
    kube: KubeClient, namespace: str
) -> None:
    """A14, G12"""
    made = await kube.create(CONFIGMAPS, configmap(namespace))
    with pytest.raises(Conflict):
        await kube.delete(CONFIGMAPS, namespace, "a", uid=str(uuid.uuid4()))
    assert await kube.get(CONFIGMAPS, namespace, "a") == made
    assert await kube.delete(CONFIGMAPS, namespace, "a", uid=made.metadata.uid) is None


async def test_finalizers_hold_a_deleted_object_and_the_last_lets_it_go(
    kube: KubeClient, namespace: str
) -> None:
    """A15, A16, G17"""
    await kube.create(CONFIGMAPS, configmap(namespace, metadata={"finalizers": [FINALIZER]}))
    waiting = await kube.delete(CONFIGMAPS, namespace, "a")
    assert waiting is not None
    assert waiting.metadata.is_deleting
    again = await kube.delete(CONFIGMAPS, namespace, "a")
    assert again is not None
    assert again.metadata.resource_version == waiting.metadata.resource_version
    with pytest.raises(InvalidRequest):
        await kube.merge_patch(
            CONFIGMAPS, namespace, "a", {"metadata": {"finalizers": [FINALIZER, "kaito.sh/new"]}}
        )
    await kube.json_patch(
        CONFIGMAPS, namespace, "a", [{"op": "remove", "path": "/metadata/finalizers/0"}]
    )
    assert await kube.get(CONFIGMAPS, namespace, "a") is None


async def test_lists_select_by_label_and_field(kube: KubeClient, namespace: str) -> None:
    """R29"""
    for name, labels in [("a", {"app": "x"}), ("b", {"app": "y"}), ("c", {})]:
        await kube.create(CONFIGMAPS, configmap(namespace, name, metadata={"labels": labels}))

    async def names(**selectors: str) -> set[str]:
        found = await kube.list(CONFIGMAPS, namespace=namespace, **selectors)
        return {obj.metadata.name for obj in found} & {"a", "b", "c"}

    assert await names() == {"a", "b", "c"}
    assert await names(label_selector="app=x") == {"a"}
    assert await names(label_selector="app in (x, y)") == {"a", "b"}
    assert await names(label_selector="app") == {"a", "b"}
    assert await names(label_selector="!app") == {"c"}
    assert await names(label_selector="app!=x") == {"b", "c"}
    assert await names(field_selector="metadata.name=b") == {"b"}


async def test_pages_follow_the_continue_token(kube: KubeClient, namespace: str) -> None:
    """R10"""
    for number in range(5):
        manifest = configmap(namespace, f"c{number}", metadata={"labels": {"page": "1"}})
        await kube.create(CONFIGMAPS, manifest)
    query = {"labelSelector": "page=1", "limit": "2"}
    seen: list[str] = []
    token = ""
    for _ in range(3):
        page = await kube.list_page(
            CONFIGMAPS,
            namespace=namespace,
            query={**query, **({"continue": token} if token else {})},
        )
        seen += [decode_owned(item).metadata.name for item in page.items]
        token = page.continue_token
    assert seen == ["c0", "c1", "c2", "c3", "c4"]
    assert token == ""


async def test_metadata_only_items_have_no_data(kube: KubeClient, namespace: str) -> None:
    """R32"""
    await kube.create(CONFIGMAPS, configmap(namespace))
    page = await kube.list_page(
        CONFIGMAPS,
        namespace=namespace,
        query={"fieldSelector": "metadata.name=a"},
        metadata_only=True,
    )
    body = json.loads(page.items[0])
    assert (body["kind"], "data" in body) == ("PartialObjectMetadata", False)


async def _next(lines: AsyncIterator[bytes], count: int) -> list[tuple[str, str, str]]:
    """(type, name, data.x) of the next events."""
    seen = []
    async with asyncio.timeout(20):
        for _ in range(count):
            event = json.loads(await anext(lines))
            body = event["object"]
            name = body["metadata"].get("name", "")
            seen.append((event["type"], name, body.get("data", {}).get("x", "")))
    return seen


async def test_a_watch_tells_every_change_after_its_version(
    kube: KubeClient, namespace: str
) -> None:
    """R12, R29"""
    made = await kube.create(CONFIGMAPS, configmap(namespace, metadata={"labels": {"app": "x"}}))
    query = {"resourceVersion": made.metadata.resource_version, "labelSelector": "app=x"}
    async with kube.watch(CONFIGMAPS, namespace=namespace, query=query, idle_seconds=30) as lines:
        await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {"x": "2"}})
        leave = {"metadata": {"labels": {"app": "y"}}, "data": {"x": "3"}}
        await kube.merge_patch(CONFIGMAPS, namespace, "a", leave)
        enter = {"metadata": {"labels": {"app": "x"}}, "data": {"x": "4"}}
        await kube.merge_patch(CONFIGMAPS, namespace, "a", enter)
        await kube.delete(CONFIGMAPS, namespace, "a")
        assert await _next(lines, 4) == [
            ("MODIFIED", "a", "2"),
            ("DELETED", "a", "2"),  # as it was before it left
            ("ADDED", "a", "4"),
            ("DELETED", "a", "4"),
        ]


async def test_a_streaming_list_ends_with_the_marker(kube: KubeClient, namespace: str) -> None:
    """R2, R3"""
    await kube.create(CONFIGMAPS, configmap(namespace, metadata={"labels": {"app": "x"}}))
    query = {
        "labelSelector": "app=x",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "60",
    }
    async with kube.watch(CONFIGMAPS, namespace=namespace, query=query, idle_seconds=30) as lines:
        assert await _next(lines, 1) == [("ADDED", "a", "1")]
        async with asyncio.timeout(20):
            marker = json.loads(await anext(lines))
        assert marker["type"] == "BOOKMARK"
        assert marker["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        await kube.merge_patch(CONFIGMAPS, namespace, "a", {"data": {"x": "2"}})
        assert await _next(lines, 1) == [("MODIFIED", "a", "2")]


async def test_the_main_resource_and_the_status_ignore_each_other(
    kube: KubeClient, namespace: str
) -> None:
    """A9"""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": namespace, "labels": {"app": "x"}},
        "spec": {
            "nodeName": "nowhere",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "i"}],
        },
        "status": {"message": "from create"},
    }
    made = await _create_when_admitted(kube, pod)
    assert made.body.get("status", {}).get("message") is None
    ignored = {"status": {"message": "from main"}, "metadata": {"labels": {"app": "y"}}}
    main = await kube.merge_patch(PODS, namespace, "p", ignored)
    assert main.body.get("status", {}).get("message") is None
    assert main.metadata.labels == {"app": "y"}
    both = {"status": {"message": "from status"}, "spec": {"activeDeadlineSeconds": 60}}
    status = await kube.merge_patch(PODS, namespace, "p", both, subresource="status")
    assert status.body["status"]["message"] == "from status"
    assert status.body["spec"] == main.body["spec"]
    assert status.metadata.generation == made.metadata.generation
    await kube.delete(PODS, namespace, "p", grace_period_seconds=0)


async def _create_when_admitted(kube: KubeClient, pod: dict[str, Any]) -> Owned:
    """A new namespace has its service account a moment later: until then pods are forbidden."""
    for _ in itertools.count():
        try:
            return await kube.create(PODS, pod)
        except Forbidden:
            await asyncio.sleep(0.1)
    raise AssertionError


async def test_every_write_is_told_before_its_caller_hears(
    kube: KubeClient, namespace: str
) -> None:
    """A1, G17"""
    told: list[Written] = []
    kube.on_written = told.append
    made = await kube.create(CONFIGMAPS, configmap(namespace, metadata={"finalizers": [FINALIZER]}))
    with pytest.raises(AlreadyExists):
        await kube.create(CONFIGMAPS, configmap(namespace))
    waiting = await kube.delete(CONFIGMAPS, namespace, "a")
    await kube.merge_patch(CONFIGMAPS, namespace, "a", {"metadata": {"finalizers": None}})
    await kube.create(CONFIGMAPS, configmap(namespace, "b"))
    await kube.delete(CONFIGMAPS, namespace, "b")
    with pytest.raises(NotFound):
        await kube.merge_patch(CONFIGMAPS, namespace, "b", {})
    kube.on_written = None
    assert waiting is not None
    uid, version = made.metadata.uid, made.metadata.resource_version
    assert told[:3] == [
        Written(CONFIGMAPS, namespace, "a", uid, version, exclusive=True),
        Written(CONFIGMAPS, namespace, "a", "", None),  # whose it is, a read tells
        Written(CONFIGMAPS, namespace, "a", uid, waiting.metadata.resource_version),
    ]
    assert [(w.name, w.deleted) for w in told[3:]] == [("a", False), ("b", False), ("b", True)]
    assert [w.exclusive for w in told[3:]] == [False, True, False]
    assert told[5].uid == told[4].uid


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%2fb"])
async def test_what_cannot_be_a_name_is_refused(
    kube: KubeClient, namespace: str, name: str
) -> None:
    """W24"""
    with pytest.raises(InvalidRequest):
        await kube.get(CONFIGMAPS, namespace, name)
    with pytest.raises(InvalidRequest):
        await kube.delete(CONFIGMAPS, namespace, name)


async def test_the_server_says_its_version(kube: KubeClient) -> None:
    assert await kube.server_version() >= (1, 34)
