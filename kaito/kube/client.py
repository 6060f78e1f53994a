"""The API server in the program's words: get, list, watch and every kind of write.

Objects come out as their kind's decoder makes them; manifests go in as mappings. No cache, no
retry beyond the transport's, no schedule: those are the informers' and the worker's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

import structlog

from kaito.api.meta import ApiObject, Key
from kaito.clock import Clock
from kaito.errors import ApiError, Expired, InvalidRequest, KindNotServed, NotFound
from kaito.kube import replies, requests
from kaito.kube.config import ClusterConfig
from kaito.kube.errors import error_for
from kaito.kube.replies import RawPage, Reply, read
from kaito.kube.requests import Request, encode
from kaito.kube.resources import Kind
from kaito.kube.transport import Transport

log = structlog.get_logger()

T = TypeVar("T", bound=ApiObject)

PAGE_SIZE: Final = 500
Query = Mapping[str, str]


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
        return read(kind.decode, reply.body, str(request))

    async def list(
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> tuple[T, ...]:
        """All objects as they are now, of one moment. What is watched has a lister instead."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in selectors.items() if value}
        try:
            raw = await self._all_pages(kind, namespace, query)
        except Expired:  # the moment that the pages show is gone: one whole list then
            raw = (await self.list_page(kind, namespace=namespace, query=query)).items
        what = f"list of {kind}"
        return tuple(read(kind.decode, item, what) for item in raw)

    async def list_page(
        self, kind: Kind[Any], *, namespace: str, query: Query, metadata_only: bool = False
    ) -> RawPage:
        """One page, undecoded. ``query``: selectors, limit, continue, resourceVersion."""
        request = Request(
            "GET",
            requests.collection_path(kind, namespace),
            tuple(query.items()),
            accept=requests.METADATA_LIST if metadata_only else requests.JSON,
        )
        reply = await self._call(request, kind)
        return read(replies.raw_page, reply.body, str(request))

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
        request = Request(
            "GET",
            requests.collection_path(kind, namespace),
            (("watch", "1"), *query.items()),
            accept=requests.METADATA if metadata_only else requests.JSON,
        )
        return self._transport.stream(request, sock_read=idle_seconds)

    async def server_version(self) -> tuple[int, int]:
        """Major and minor version of the API server."""
        request = Request("GET", "/version")
        return read(replies.version, (await self._call(request)).body, str(request))

    async def is_served(self, kind: Kind[Any]) -> bool:
        """Whether the kind exists there now, by discovery: needs no right to the kind itself."""
        request = Request("GET", requests.version_path(kind))
        try:
            reply = await self._call(request)
        except KindNotServed:
            return False
        return kind.plural in read(replies.served, reply.body, str(request))

    # Writing ------------------------------------------------------------------------------------

    async def create(self, kind: Kind[T], manifest: Mapping[str, Any]) -> T:
        """POST. A name that is in use is an answer, and whose it is a live read tells.

        Raises:
            AlreadyExists: see above.
            NamespaceMissing, NamespaceTerminating: there can be none now.
        """
        key = _key(manifest)
        path = requests.collection_path(kind, key[0])
        return await self._write(kind, key, Request("POST", path, body=encode(manifest)))

    async def apply(
        self,
        kind: Kind[T],
        manifest: Mapping[str, Any],
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
        request = Request(
            "PATCH",
            requests.object_path(kind, *key),
            (("fieldManager", field_manager), ("force", "true" if force else "false")),
            encode(manifest),
            requests.APPLY_PATCH,
            repeatable=True,
        )
        return await self._write(kind, key, request, based_on=_version(manifest))

    async def merge_patch(
        self,
        kind: Kind[T],
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
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
        self,
        kind: Kind[T],
        namespace: str,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        subresource: str = "",
    ) -> T:
        """JSON Patch: all operations or none.

        Raises:
            NotFound: there is no such object.
            PatchTestFailed: a ``test`` or a path did not hold.
        """
        path = requests.object_path(kind, namespace, name, subresource)
        request = Request("PATCH", path, body=encode(operations), content_type=requests.JSON_PATCH)
        return await self._write(kind, (namespace, name), request)

    async def replace(self, kind: Kind[T], manifest: Mapping[str, Any]) -> T:
        """PUT the whole object. Without a resourceVersion some kinds would overwrite silently.

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
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": propagation,
        }
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_period_seconds is not None:
            body["gracePeriodSeconds"] = grace_period_seconds
        request = Request(
            "DELETE",
            requests.object_path(kind, namespace, name),
            body=encode(body),
            repeatable=uid is not None,
        )
        key = (namespace, name)
        try:
            with self._uncertain(kind, key):
                reply = await self._call(request, kind)
                deletion = read(replies.deletion, reply.body, str(request))
                if not deletion.is_waiting:
                    gone = deletion.uid or uid or ""
                    self._report(Written(kind, *key, gone, "", deleted=True))
                    return None
                obj = read(kind.decode, reply.body, str(request))
        except NotFound:
            return None
        self._report_object(kind, obj)
        return obj

    async def create_subresource(
        self, kind: Kind[Any], namespace: str, name: str, subresource: str, body: Mapping[str, Any]
    ) -> None:
        """POST to a subresource that answers with a Status: ``binding``, ``eviction``.

        Raises:
            TooManyRequests: an eviction that a disruption budget does not allow now.
        """
        path = requests.object_path(kind, namespace, name, subresource)
        await self._call(Request("POST", path, body=encode(body)), kind)

    # Inside -------------------------------------------------------------------------------------

    async def _all_pages(self, kind: Kind[Any], namespace: str, query: Query) -> Sequence[bytes]:
        items: list[bytes] = []
        token = ""
        while True:
            page = await self.list_page(
                kind,
                namespace=namespace,
                query={**query, "limit": str(PAGE_SIZE), **({"continue": token} if token else {})},
            )
            items += page.items
            if not (token := page.continue_token):
                return items

    async def _write(self, kind: Kind[T], key: Key, request: Request, *, based_on: str = "") -> T:
        with self._uncertain(kind, key):
            reply = await self._call(request, kind)
            obj = read(kind.decode, reply.body, str(request))
        # A write that changes nothing answers with the version there is, whoever made that.
        is_change = based_on not in ("", obj.metadata.resource_version)
        is_made = reply.status == HTTPStatus.CREATED
        self._report_object(kind, obj, exclusive=is_made or is_change)
        return obj

    async def _call(self, request: Request, kind: Kind[Any] | None = None) -> Reply:
        reply = await self._transport.request(request)
        if 200 <= reply.status < 300:
            return reply
        error = error_for(
            reply,
            what=str(request),
            resource=kind.plural if kind else "",
            is_json_patch=request.content_type == requests.JSON_PATCH,
        )
        error.may_be_done = error.may_be_done or reply.may_be_second
        log.debug(
            "api server refused",
            request=str(request),
            status=reply.status,
            reason=error.reason,
            audit_id=reply.headers.get("Audit-Id", ""),
        )
        raise error

    @contextmanager
    def _uncertain(self, kind: Kind[Any], key: Key) -> Iterator[None]:
        """Report a write whose outcome nobody knows: no answer, half of one, or one by a proxy."""
        try:
            yield
        except (asyncio.CancelledError, ApiError) as err:
            if not isinstance(err, ApiError) or err.may_be_done:
                self._report(Written(kind, *key, uid="", resource_version=None))
            raise

    def _report_object(self, kind: Kind[Any], obj: ApiObject, *, exclusive: bool = False) -> None:
        meta = obj.metadata
        self._report(Written(kind, *meta.key, meta.uid, meta.resource_version, exclusive=exclusive))

    def _report(self, written: Written) -> None:
        if self.on_written is not None:
            self.on_written(written)


async def connect(
    config: ClusterConfig, *, clock: Clock, component: str, fence: Callable[[], float] | None = None
) -> KubeClient:
    """A client whose certificates and token have been read. Nothing was asked of the server yet.

    Raises:
        InvalidSettings: one of them cannot be used; names the file.
    """
    transport = Transport(config, clock=clock, component=component, fence=fence)
    try:
        await transport.prepare()
    except BaseException:
        await transport.close()
        raise
    return KubeClient(transport)


def _key(manifest: Mapping[str, Any]) -> Key:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata.get("name", "")


def _version(body: Mapping[str, Any]) -> str:
    """The resourceVersion on whose condition the body is sent; empty: on none."""
    version: str = body.get("metadata", {}).get("resourceVersion", "")
    return version
