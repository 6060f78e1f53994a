"""The API server in the program's words: get, list, watch and every kind of write.

Objects come out as their kind's decoder makes them; manifests go in as mappings. No cache, no
retry beyond the transport's, no schedule: those are the informers' and the worker's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock
from kaito.errors import ApiError, InvalidRequest, NotFound
from kaito.kube import errors, replies, requests
from kaito.kube.config import ClusterConfig
from kaito.kube.replies import RawPage, Reply, read
from kaito.kube.requests import Request, encode
from kaito.kube.resources import Kind
from kaito.kube.transport import Fence, Transport

log = structlog.get_logger()

T = TypeVar("T", bound=ApiObject)

_BARE: Final = b'{"metadata":'
Query = Mapping[str, str]
Body = Mapping[str, Any]
Patch = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Written:
    """A write that was, or may have been, carried out.

    ``resource_version``: the object's since, empty when it is gone; None: the outcome is unknown,
    read it. ``deleted``: it is gone, not merely waiting for its finalizers. ``exclusive``: this
    version is the object made, or the one the write was based on and what it wrote, no more.
    """

    kind: Kind[Any]
    namespace: str
    name: str
    uid: str
    resource_version: str | None
    deleted: bool = False
    exclusive: bool = False


class KubeClient:
    """One API server. Every method may raise any ApiError; those named are part of the answer.

    ``on_written`` hears of each write as soon as its outcome is known, before the caller does.
    """

    def __init__(
        self, transport: Transport, *, on_written: Callable[[Written], None] | None = None
    ) -> None:
        self.on_written = on_written
        self._transport = transport

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    # Reading ------------------------------------------------------------------------------------

    async def get(self, kind: Kind[T], namespace: str, name: str) -> T | None:
        """The object as it is now; None: it is not there.

        Raises:
            KindNotServed: says nothing about the object.
        """
        request = Request("GET", requests.object_path(kind, namespace, name))
        try:
            reply = await self._call(request, kind)
        except NotFound:
            return None
        return read(kind.decode, reply.body, request)

    async def list(
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> tuple[T, ...]:
        """All objects as they are now, in one answer. What is watched has a lister instead."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in selectors.items() if value}
        page = await self.list_page(kind, namespace=namespace, query=query)
        # Items of built-in kinds do not say what they are.
        head = f'{{"kind":"{kind.kind}","apiVersion":"{kind.api_version}",'.encode()
        return tuple(
            read(
                kind.decode, head + item[1:] if item.startswith(_BARE) else item, f"list of {kind}"
            )
            for item in page.items
        )

    async def list_page(
        self, kind: Kind[Any], *, namespace: str, query: Query, metadata_only: bool = False
    ) -> RawPage:
        """One page, undecoded. ``query``: selectors, limit, continue, resourceVersion."""
        path = requests.collection_path(kind, namespace)
        accept = requests.METADATA_LIST if metadata_only else requests.JSON
        request = Request("GET", path, tuple(query.items()), accept=accept)
        reply = await self._call(request, kind)
        return await replies.page(reply.body, request)

    def watch(
        self,
        kind: Kind[Any],
        *,
        namespace: str,
        query: Query,
        idle_seconds: float,
        metadata_only: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The lines of a watch, undecoded. See ``Transport.stream`` for its end and errors.

        ``query``: selectors, resourceVersion, timeoutSeconds and the like, without ``watch``.
        ``idle_seconds``: silence that counts as a cut.
        """
        path = requests.collection_path(kind, namespace)
        accept = requests.METADATA if metadata_only else requests.JSON
        request = Request("GET", path, (("watch", "1"), *query.items()), accept=accept)
        return self._transport.stream(request, sock_read=idle_seconds)

    async def server_version(self) -> tuple[int, int]:
        """Major and minor version of the API server."""
        request = Request("GET", "/version")
        return read(replies.version, (await self._call(request)).body, request)

    # Writing ------------------------------------------------------------------------------------

    async def create(self, kind: Kind[T], manifest: Body) -> T:
        """POST. A name that is in use is an answer, and whose it is a live read tells.

        Raises:
            AlreadyExists: see above.
            NamespaceMissing, NamespaceTerminating: there can be none now.
        """
        key = _key(manifest)
        request = Request("POST", requests.collection_path(kind, key[0]), body=encode(manifest))
        return await self._write(kind, key, request)

    async def apply(
        self,
        kind: Kind[T],
        manifest: Body,
        *,
        field_manager: str,
        uid: str | None = None,
        force: bool = True,
    ) -> T:
        """Server-side apply: what the manifest says becomes ours, what it no longer says goes.

        ``uid``: only that very object is changed, and none is made in its place.

        Raises:
            Conflict: the object is gone, or another one has its name (only with ``uid``).
            ApplyConflict: others own fields (only without ``force``); its causes name them.
        """
        key = _key(manifest)
        if uid is not None:
            manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
        path = requests.object_path(kind, *key)
        query = (("fieldManager", field_manager), ("force", "true" if force else "false"))
        body, content_type = encode(manifest), requests.APPLY_PATCH
        request = Request("PATCH", path, query, body, content_type, repeatable=True)
        return await self._write(kind, key, request, based_on=_version(manifest))

    async def merge_patch(
        self, kind: Kind[T], namespace: str, name: str, body: Body, *, subresource: str = ""
    ) -> T:
        """JSON merge patch; lists are replaced whole, null removes.

        Raises:
            NotFound: there is no such object.
            Conflict: ``metadata.resourceVersion`` or ``uid`` in the body is not the object's.
        """
        path = requests.object_path(kind, namespace, name, subresource)
        request = Request("PATCH", path, body=encode(body), content_type=requests.MERGE_PATCH)
        return await self._write(kind, (namespace, name), request, based_on=_version(body))

    async def json_patch(
        self, kind: Kind[T], namespace: str, name: str, operations: Patch, *, subresource: str = ""
    ) -> T:
        """JSON Patch: all operations or none.

        Raises:
            NotFound: there is no such object.
            PatchTestFailed: a ``test`` or a path did not hold.
        """
        path = requests.object_path(kind, namespace, name, subresource)
        request = Request("PATCH", path, body=encode(operations), content_type=requests.JSON_PATCH)
        return await self._write(kind, (namespace, name), request)

    async def replace(self, kind: Kind[T], manifest: dict[str, Any]) -> T:
        """PUT the whole object. Without a resourceVersion some kinds would overwrite silently.

        A dict, as caches hold none: what they hold is a part, and a PUT would cut the rest off.

        Raises:
            InvalidRequest: it carries no resourceVersion.
            Conflict: the object has changed, or is gone.
        """
        key = _key(manifest)
        path = requests.object_path(kind, *key)
        if not (version := _version(manifest)):
            raise InvalidRequest(f"PUT {path}: no metadata.resourceVersion")
        request = Request("PUT", path, body=encode(manifest), repeatable=True)
        return await self._write(kind, key, request, based_on=version)

    async def delete(
        self,
        kind: Kind[T],
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        propagation: str = "Background",
        grace_period_seconds: int | None = None,
    ) -> T | None:
        """The object if it is still there, waiting for finalizers or its grace period; else None.

        Raises:
            Conflict: another object than ``uid`` has the name.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
            "preconditions": {"uid": uid} if uid is not None else None,
            "gracePeriodSeconds": grace_period_seconds,
        }
        body = encode({name: value for name, value in options.items() if value is not None})
        path = requests.object_path(kind, namespace, name)
        request = Request("DELETE", path, body=body, repeatable=uid is not None)
        try:
            reply = await self._call(request, kind)
            gone, waits = read(replies.deletion, reply.body, request)
            obj = read(kind.decode, reply.body, request) if waits else None
        except (asyncio.CancelledError, ApiError) as err:
            self._report_uncertain(kind, (namespace, name), err)
            if isinstance(err, NotFound):
                return None
            raise
        version = obj.metadata.resource_version if obj is not None else ""
        written = Written(kind, namespace, name, gone or uid or "", version, deleted=obj is None)
        self._report(written)
        return obj

    async def create_subresource(
        self, kind: Kind[Any], namespace: str, name: str, subresource: str, body: Body
    ) -> None:
        """POST to a subresource that answers with a Status: ``binding``, ``eviction``.

        Raises:
            TooManyRequests: an eviction that a disruption budget does not allow now.
        """
        path = requests.object_path(kind, namespace, name, subresource)
        try:
            await self._call(Request("POST", path, body=encode(body)), kind)
        except (asyncio.CancelledError, ApiError) as err:
            self._report_uncertain(kind, (namespace, name), err)
            raise
        # The answer is a Status: what became of the object, a read tells.
        self._report(Written(kind, namespace, name, "", None))

    # Inside -------------------------------------------------------------------------------------

    async def _write(self, kind: Kind[T], key: Key, request: Request, *, based_on: str = "") -> T:
        try:
            reply = await self._call(request, kind)
            obj = read(kind.decode, reply.body, request)
        except (asyncio.CancelledError, ApiError) as err:
            self._report_uncertain(kind, key, err)
            raise
        meta = obj.metadata
        # A write that changes nothing answers with the version there is, whoever made that.
        exclusive = reply.status == 201 or based_on not in ("", meta.resource_version)
        self._report(Written(kind, *meta.key, meta.uid, meta.resource_version, exclusive=exclusive))
        return obj

    async def _call(self, request: Request, kind: Kind[Any] | None = None) -> Reply:
        reply = await self._transport.request(request)
        if 200 <= reply.status < 300:
            return reply
        error = errors.error_for(
            reply,
            what=str(request),
            resource=kind.plural if kind else "",
            is_json_patch=request.content_type == requests.JSON_PATCH,
        )
        error.may_be_done = error.may_be_done or reply.may_be_second
        log.debug("api server refused", error=str(error), audit=reply.headers.get("Audit-Id"))
        raise error

    def _report_uncertain(self, kind: Kind[Any], key: Key, err: BaseException) -> None:
        """A write whose outcome nobody knows: no answer, half of one, or one by a proxy."""
        if not isinstance(err, ApiError) or err.may_be_done:
            self._report(Written(kind, *key, uid="", resource_version=None))

    def _report(self, written: Written) -> None:
        if self.on_written is not None:
            self.on_written(written)


async def connect(
    config: ClusterConfig,
    *,
    clock: Clock,
    component: str,
    fence: Fence | None = None,
    reserve: Callable[[], float] | None = None,
) -> KubeClient:
    """A client whose certificates and token have been read. Nothing was asked of the server yet.

    The arguments are the Transport's.

    Raises:
        InvalidSettings: one of them cannot be used; names the file.
    """
    transport = Transport(config, clock=clock, component=component, fence=fence, reserve=reserve)
    try:
        await transport.prepare()
    except BaseException:
        await transport.close()
        raise
    return KubeClient(transport)


def _key(manifest: Body) -> Key:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata.get("name", "")


def _version(body: Body) -> str:
    """The resourceVersion on whose condition the body is sent; empty: on none."""
    version: str = body.get("metadata", {}).get("resourceVersion", "")
    return version
