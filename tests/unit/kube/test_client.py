from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito.api.meta import Owned
from kaito.api.views import decode_metadata, decode_owned
from kaito.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    InvalidRequest,
    InvalidSettings,
    KindNotServed,
    NotLeader,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
)
from kaito.kube.client import KubeClient, Written, connect
from kaito.kube.config import ClusterConfig
from kaito.kube.resources import Kind
from kaito.kube.tokens import FileToken
from kaito.kube.transport import Transport
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import Server, answer, chunks, cut, hang, json_of, ok, serving, status

PODS: Kind[Owned] = Kind("", "v1", "Pod", "pods", True, decode_owned)
MACHINES: Kind[Owned] = Kind("karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_owned)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


@pytest.fixture
async def client(server: Server) -> AsyncIterator[KubeClient]:
    made = KubeClient(Transport(server.config, clock=FakeClock(), component="tests"))
    yield made
    await made.close()


def pod(name: str = "p", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "n", "uid": "u", "resourceVersion": "7"} | metadata,
    }


def page(*names: str, token: str = "") -> dict[str, Any]:
    return {
        "kind": "PodList",
        "metadata": {"resourceVersion": "9", **({"continue": token} if token else {})},
        "items": [pod(name) for name in names],
    }


GONE = answer(404, status(404, "NotFound", details={"name": "p", "kind": "pods"}))
NOT_SERVED = answer(404, "404 page not found")


async def test_an_object_not_there_is_none_and_a_kind_not_there_an_error(
    server: Server, client: KubeClient
) -> None:
    """W10"""
    server.answers = [GONE, NOT_SERVED]
    assert await client.get(PODS, "n", "p") is None
    with pytest.raises(KindNotServed):
        await client.get(PODS, "n", "p")


async def test_a_missing_kind_is_never_a_successful_delete(
    server: Server, client: KubeClient
) -> None:
    """W10"""
    server.answers = [NOT_SERVED]
    with pytest.raises(KindNotServed):
        await client.delete(PODS, "n", "p")


async def test_a_success_that_cannot_be_read_is_a_transport_error(
    server: Server, client: KubeClient
) -> None:
    """W8: a captive portal."""
    server.answers = [ok("<html>welcome</html>")]
    with pytest.raises(TransportError):
        await client.get(PODS, "n", "p")


async def test_a_list_is_one_answer(server: Server, client: KubeClient) -> None:
    server.answers = [ok(page("a", "b", "c"))]
    found = await client.list(PODS, namespace="n", label_selector="x=1")
    assert [obj.metadata.name for obj in found] == ["a", "b", "c"]
    assert [seen.query for seen in server.seen] == [{"labelSelector": "x=1"}]


@pytest.mark.parametrize("custom", [False, True])
async def test_listed_objects_say_what_they_are(
    server: Server, client: KubeClient, custom: bool
) -> None:
    """W25: built-in kinds' items carry no kind on the wire, custom resources' do."""
    own = {"apiVersion": "v1", "kind": "Pod"} if custom else {}
    item = own | {"metadata": pod()["metadata"]}
    server.answers = [ok(page() | {"items": [item]})]
    (found,) = await client.list(PODS)
    assert found.body["kind"] == "Pod"
    assert found.body["apiVersion"] == "v1"


@pytest.mark.parametrize(("kind", "version"), [(PODS, "v1"), (MACHINES, "karpenter.sh/v1alpha5")])
async def test_what_a_listed_object_is_comes_from_what_was_asked_for(
    server: Server, client: KubeClient, kind: Kind[Owned], version: str
) -> None:
    """W25: kind, group and version."""
    server.answers = [ok(page() | {"items": [{"metadata": pod()["metadata"]}]})]
    (found,) = await client.list(kind)
    assert (found.body["kind"], found.body["apiVersion"]) == (kind.kind, version)
    assert found.body["metadata"]["name"] == "p"  # type: ignore[index]


async def test_metadata_is_that_of_an_object_of_the_real_kind(
    server: Server, client: KubeClient
) -> None:
    """R32: whoever refers to it names the kind and version there are."""
    machines = Kind("karpenter.sh", "v1alpha5", "Machine", "machines", False, decode_metadata)
    item = pod() | {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    server.answers = [ok(page() | {"items": [item]})]
    raw = await client.list_page(machines, namespace="", query={}, metadata_only=True)
    ref = machines.ref(machines.decode(raw.items[0]))
    assert (ref.api_version, ref.kind, ref.name) == ("karpenter.sh/v1alpha5", "Machine", "p")


async def test_an_empty_list_may_be_null(server: Server, client: KubeClient) -> None:
    server.answers = [ok({"metadata": {"resourceVersion": "9"}, "items": None})]
    raw = await client.list_page(PODS, namespace="", query={}, metadata_only=True)
    assert (raw.items, raw.resource_version, raw.continue_token) == ([], "9", "")
    assert "as=PartialObjectMetadataList" in server.seen[0].headers["Accept"]


async def test_a_watch_asks_for_metadata_as_single_objects(
    server: Server, client: KubeClient
) -> None:
    """R32: the list's form would be a 406."""
    server.answers = [chunks(b"{}\n")]
    watch = client.watch(
        *(PODS,), namespace="", query={"x": "1"}, idle_seconds=5.0, metadata_only=True
    )
    async with watch as lines:
        assert [line async for line in lines] == [b"{}"]
    assert server.seen[0].query == {"watch": "1", "x": "1"}
    assert "as=PartialObjectMetadata;" in server.seen[0].headers["Accept"]


async def test_writes_are_sent_as_kubernetes_wants_them(server: Server, client: KubeClient) -> None:
    """A5, A6, A12, A14, A16"""
    server.answers = [ok(pod())]
    await client.create(PODS, pod())
    await client.apply(PODS, pod(), field_manager="m", uid="u2")
    await client.apply(PODS, pod(), field_manager="m", force=False)
    await client.merge_patch(PODS, "n", "p", {"a": 1}, subresource="status")
    await client.json_patch(PODS, "n", "p", [{"op": "remove", "path": "/a"}])
    await client.replace(PODS, pod())
    await client.delete(PODS, "n", "p", uid="u", grace_period_seconds=0)
    await client.create_subresource(PODS, "n", "p", "binding", {"target": {}})
    path = "/api/v1/namespaces/n/pods"
    assert [(s.method, s.path, s.headers["Content-Type"]) for s in server.seen] == [
        ("POST", path, "application/json"),
        ("PATCH", f"{path}/p", "application/apply-patch+yaml"),
        ("PATCH", f"{path}/p", "application/apply-patch+yaml"),
        ("PATCH", f"{path}/p/status", "application/merge-patch+json"),
        ("PATCH", f"{path}/p", "application/json-patch+json"),
        ("PUT", f"{path}/p", "application/json"),
        ("DELETE", f"{path}/p", "application/json"),
        ("POST", f"{path}/p/binding", "application/json"),
    ]
    assert server.seen[1].query == {"fieldManager": "m", "force": "true"}
    assert json_of(server.seen[1])["metadata"]["uid"] == "u2"
    assert server.seen[2].query == {"fieldManager": "m", "force": "false"}
    assert json_of(server.seen[6]) == {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "propagationPolicy": "Background",
        "preconditions": {"uid": "u"},
        "gracePeriodSeconds": 0,
    }


async def test_a_replace_without_a_version_is_not_sent(server: Server, client: KubeClient) -> None:
    """A12"""
    with pytest.raises(InvalidRequest):
        await client.replace(PODS, pod(resourceVersion=""))
    assert not server.seen


async def test_an_apply_on_another_object_is_a_conflict(server: Server, client: KubeClient) -> None:
    """A6"""
    cause = {"reason": "FieldValueInvalid", "field": "metadata.uid", "message": "immutable"}
    body = status(422, "Invalid", details={"name": "p", "causes": [cause, cause]})
    server.answers = [answer(422, body)]
    with pytest.raises(Conflict):
        await client.apply(PODS, pod(), field_manager="m", uid="u2")


@pytest.mark.parametrize(
    ("metadata", "is_there"),
    [
        ({}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["f"]}, True),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0}, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}, True),
    ],
)
async def test_a_deleted_object_is_told_from_one_that_waits(
    server: Server, client: KubeClient, metadata: dict[str, Any], is_there: bool
) -> None:
    """A14, G17"""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [ok(pod(**metadata))]
    left = await client.delete(PODS, "n", "p")
    assert (left is not None) == is_there
    expected = Written(PODS, "n", "p", "u", "7" if is_there else "", deleted=not is_there)
    assert told == [expected]


async def test_a_deletes_status_names_the_uid(server: Server, client: KubeClient) -> None:
    """A14"""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [ok({"kind": "Status", "status": "Success", "details": {"uid": "u9"}}), GONE]
    assert await client.delete(PODS, "n", "p") is None
    assert await client.delete(PODS, "n", "p") is None
    assert told == [Written(PODS, "n", "p", "u9", "", deleted=True)]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (cut(), TransportError),
        (cut(b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\nhalf"), TransportError),
        (answer(504, ""), ServerUnavailable),
        (answer(201, "<html>"), TransportError),
        (answer(409, status(409, "AlreadyExists")), AlreadyExists),
    ],
)
async def test_an_outcome_nobody_knows_is_told_as_such(
    server: Server, client: KubeClient, reply: Any, error: type[Exception]
) -> None:
    """A1, G17"""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [reply]
    with pytest.raises(error):
        await client.create(PODS, pod())
    assert told == [Written(PODS, "n", "p", "", None)]


async def test_a_cancelled_write_may_have_happened(server: Server, client: KubeClient) -> None:
    """A1"""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [hang()]
    async with asyncio.TaskGroup() as group:
        write = group.create_task(client.create(PODS, pod()))
        await server.arrived.wait()
        write.cancel()
    assert told == [Written(PODS, "n", "p", "", None)]


@pytest.mark.parametrize(
    "second", [cut(), answer(409, status(409, "Conflict")), answer(429, ""), answer(403, ""), GONE]
)
async def test_a_refused_repeat_does_not_undo_the_first_sending(
    server: Server, client: KubeClient, second: Any
) -> None:
    """A1: the first got no answer, so it may have been carried out, whatever the second met."""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [cut(), second]
    with pytest.raises(ApiError):
        await client.replace(PODS, pod())
    server.answers = [cut(), GONE]
    assert await client.delete(PODS, "n", "p", uid="u") is None
    assert told == [Written(PODS, "n", "p", "", None)] * 2


async def test_a_repeat_that_finds_nobody_does_not_undo_the_first_sending(
    server: Server, client: KubeClient
) -> None:
    """A1: proven by a server that read the request, and was gone when it was sent again."""
    told: list[Written] = []

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        dying.close()
        writer.transport.abort()

    dying = await asyncio.start_server(die, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{dying.sockets[0].getsockname()[1]}"
    transport = Transport(ClusterConfig(host=url), clock=FakeClock(), component="tests")
    client = KubeClient(transport, on_written=told.append)
    with pytest.raises(TransportError):
        await client.apply(PODS, pod(), field_manager="m")
    await client.close()
    assert told == [Written(PODS, "n", "p", "", None)]


@pytest.mark.parametrize(
    ("write", "code", "exclusive"),
    [
        (lambda c: c.create(PODS, pod()), 201, True),
        (lambda c: c.apply(PODS, pod(resourceVersion=""), field_manager="m"), 201, True),
        (lambda c: c.apply(PODS, pod(resourceVersion=""), field_manager="m"), 200, False),
        (lambda c: c.apply(PODS, pod(resourceVersion="6"), field_manager="m"), 200, True),
        (lambda c: c.replace(PODS, pod(resourceVersion="6")), 200, True),
        (lambda c: c.replace(PODS, pod(resourceVersion="7")), 200, False),
        (lambda c: c.merge_patch(PODS, "n", "p", pod(resourceVersion="6")), 200, True),
        (lambda c: c.merge_patch(PODS, "n", "p", {"status": {}}), 200, False),
        (lambda c: c.json_patch(PODS, "n", "p", []), 200, False),
    ],
)
async def test_a_write_is_exclusive_if_nothing_can_lie_between_it_and_what_we_knew(
    server: Server, client: KubeClient, write: Any, code: int, exclusive: bool
) -> None:
    """G16: it made the object, or was based on a version and moved it (A7: a no-op keeps it)."""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [answer(code, pod())]
    await write(client)
    assert told == [Written(PODS, "n", "p", "u", "7", exclusive=exclusive)]


@pytest.mark.parametrize(
    "reply", [answer(409, status(409, "Conflict")), answer(403, ""), answer(429, ""), NOT_SERVED]
)
async def test_a_refused_write_is_not_told(server: Server, client: KubeClient, reply: Any) -> None:
    """A4"""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [reply]
    with pytest.raises(Exception, match=r"POST /api/v1/namespaces/n/pods: \d{3}"):
        await client.create(PODS, pod())
    assert not told


async def test_a_write_that_never_left_is_not_told(server: Server) -> None:
    """A4, E16"""

    def lost() -> float:
        raise NotLeader("no")

    told: list[Written] = []
    transport = Transport(server.config, clock=FakeClock(), component="tests", fence=lost)
    client = KubeClient(transport, on_written=told.append)
    with pytest.raises(NotLeader):
        await client.create(PODS, pod())
    await client.close()
    assert not told
    assert not server.seen


async def test_what_a_subresource_made_of_the_object_is_for_a_read_to_tell(
    server: Server, client: KubeClient
) -> None:
    """A1: an eviction that was accepted is a write; one that was refused is none."""
    told: list[Written] = []
    client.on_written = told.append
    server.answers = [answer(201, status(201, "Created")), answer(429, status(429, "Wait"))]
    await client.create_subresource(PODS, "n", "p", "eviction", {})
    with pytest.raises(TooManyRequests):
        await client.create_subresource(PODS, "n", "p", "eviction", {})
    assert told == [Written(PODS, "n", "p", "", None)]


async def test_an_eviction_that_a_budget_forbids_is_too_many_requests(
    server: Server, client: KubeClient
) -> None:
    server.answers = [answer(429, status(429, "TooManyRequests"))]
    with pytest.raises(TooManyRequests):
        await client.create_subresource(PODS, "n", "p", "eviction", {})


@pytest.mark.parametrize("minor", ["34", "34+"])
async def test_the_version_is_two_numbers(server: Server, client: KubeClient, minor: str) -> None:
    server.answers = [ok({"major": "1", "minor": minor})]
    assert await client.server_version() == (1, 34)


async def test_connecting_reads_the_credentials_first(server: Server, tmp_path: Any) -> None:
    config = ClusterConfig(host=server.url, token=FileToken(tmp_path / "token"))
    with pytest.raises(InvalidSettings):
        await connect(config, clock=FakeClock(), component="tests")
    (tmp_path / "token").write_text("abc")
    client = await connect(config, clock=FakeClock(), component="tests")
    server.answers = [GONE]
    await client.get(PODS, "n", "p")
    assert server.seen[0].headers["Authorization"] == "Bearer abc"
    await client.close()
