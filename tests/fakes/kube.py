"""An API server in memory, behind the methods of ``kaito.kube.client.KubeClient``.

Held to the real one by ``tests/contracts/test_kube_contract.py``. Not here: admission, defaults,
validation, garbage collection by owner references, lists merged by key in apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fnmatch
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kaito.api.meta import ApiObject
from kaito.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    InvalidRequest,
    KaitoError,
    KindNotServed,
    NotFound,
)
from kaito.kube import requests
from kaito.kube.client import Written
from kaito.kube.replies import RawPage
from kaito.kube.resources import Kind
from tests.fakes.documents import Body, encoded, merged, patched, selector
from tests.fakes.kube_store import ObjectKey, ObjectStore, Stream, has_status

T = TypeVar("T", bound=ApiObject)

_READS = frozenset({"get", "list", "list_page", "watch"})


@dataclass(frozen=True)
class Call:
    """One call of a method, as the log keeps it. ``kind``: ``plural.group``."""

    method: str
    kind: str
    namespace: str = ""
    name: str = ""
    body: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Fault:
    method: str
    kind: str
    error: KaitoError
    times: int
    applied: bool


class FakeKube:
    """``calls``: every call so far. ``on_written``: as KubeClient's."""

    def __init__(self, *, clock: Any = None, on_written: Callable[[Written], None] | None = None):
        self.on_written = on_written
        self.calls: list[Call] = []
        self.not_served: set[str] = set()  # resources whose CRD is missing
        self._store = ObjectStore(clock)
        self._names = itertools.count(1)
        self._faults: list[_Fault] = []

    # What a test arranges and looks at ----------------------------------------------------------

    def seed(self, kind: Kind[T], manifest: Mapping[str, Any]) -> T:
        """Put an object there as it is, status included; no call is logged."""
        body = copy.deepcopy(dict(manifest))
        key = self._key(kind, body)
        return kind.decode(encoded(self._store.put(key, self._store.objects.get(key), body)))

    def body(self, kind: Kind[Any], namespace: str, name: str) -> Body | None:
        """The object as it is stored."""
        return copy.deepcopy(self._store.objects.get((kind.resource, namespace, name)))

    def bodies(self, kind: Kind[Any]) -> list[Body]:
        """All objects of a kind, by key."""
        return copy.deepcopy(self._store.of(kind))

    def fail(
        self,
        method: str,
        kind: Kind[Any] | None,
        error: KaitoError,
        times: int = 1,
        *,
        applied: bool = False,
    ) -> None:
        """Answer the next ``times`` calls with the error. ``method``: a glob; kind None: any.

        ``applied``: the work is done and the answer lost.
        """
        resource = kind.resource if kind is not None else "*"
        self._faults.append(_Fault(method, resource, error, times, applied))

    def writes(self) -> list[Call]:
        """The calls that were to change something."""
        return [call for call in self.calls if call.method not in _READS]

    def end_watches(self, error: KaitoError | None = None) -> None:
        """End all open watches: cleanly, or cut by the error."""
        self._store.end_streams(error)

    def compact(self) -> None:
        """Forget the past: watches from an older version than now get 410."""
        self._store.compact()

    # KubeClient ---------------------------------------------------------------------------------

    async def close(self) -> None:
        pass

    async def server_version(self) -> tuple[int, int]:
        return 1, 34

    async def is_served(self, kind: Kind[Any]) -> bool:
        return kind.resource not in self.not_served

    async def get(self, kind: Kind[T], namespace: str, name: str) -> T | None:
        requests.object_path(kind, namespace, name)
        await self._begin(Call("get", kind.resource, namespace, name))
        body = self._store.objects.get((kind.resource, namespace, name))
        return None if body is None else kind.decode(encoded(body))

    async def list(
        self,
        kind: Kind[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
    ) -> tuple[T, ...]:
        options = {"labelSelector": label_selector, "fieldSelector": field_selector}
        await self._begin(Call("list", kind.resource, namespace, options=options))
        matches = selector(namespace, options)
        return tuple(kind.decode(encoded(b)) for b in self.bodies(kind) if matches(b))

    async def list_page(
        self,
        kind: Kind[Any],
        *,
        namespace: str,
        query: Mapping[str, str],
        metadata_only: bool = False,
    ) -> RawPage:
        await self._begin(Call("list_page", kind.resource, namespace, options=dict(query)))
        matches = selector(namespace, query)
        found = [b for b in self.bodies(kind) if matches(b)]
        start = int(query.get("continue") or 0)
        stop = start + int(query.get("limit") or len(found) or 1)
        return RawPage(
            [encoded(b, metadata_only=metadata_only) for b in found[start:stop]],
            str(self._store.version),
            str(stop) if stop < len(found) else "",
        )

    def watch(
        self,
        kind: Kind[Any],
        *,
        namespace: str,
        query: Mapping[str, str],
        idle_seconds: float,
        metadata_only: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._watch(kind, namespace, query, metadata_only)

    async def create(self, kind: Kind[T], manifest: Mapping[str, Any]) -> T:
        body = copy.deepcopy(dict(manifest))
        metadata = body["metadata"]
        if not metadata.get("name"):
            metadata["name"] = f"{metadata['generateName']}{next(self._names):05}"
        key = self._key(kind, body)

        def change() -> Body:
            if key in self._store.objects:
                raise AlreadyExists(f"{key} exists", status=409)
            if has_status(kind) and kind.plural != "nodes":  # a node registers with its status
                body.pop("status", None)
            for given_by_server in ("uid", "resourceVersion", "creationTimestamp", "generation"):
                metadata.pop(given_by_server, None)
            return self._store.put(key, None, body)

        return await self._write(Call("create", *key, manifest), kind, change)

    async def apply(
        self,
        kind: Kind[T],
        manifest: Mapping[str, Any],
        *,
        field_manager: str,
        uid: str | None = None,
        force: bool = True,
    ) -> T:
        key = self._key(kind, manifest)

        def change() -> Body:
            return self._store.apply(key, manifest, manager=field_manager, uid=uid, force=force)

        options = {"field_manager": field_manager, "uid": uid, "force": force}
        return await self._write(Call("apply", *key, manifest, options), kind, change)

    async def merge_patch(
        self,
        kind: Kind[T],
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
    ) -> T:
        key = (kind.resource, namespace, name)

        def change() -> Body:
            return self._store.patch(kind, key, subresource, lambda old: merged(old, body))

        call = Call("merge_patch", *key, body, {"subresource": subresource})
        return await self._write(call, kind, change)

    async def json_patch(
        self,
        kind: Kind[T],
        namespace: str,
        name: str,
        operations: Sequence[Mapping[str, Any]],
        *,
        subresource: str = "",
    ) -> T:
        key = (kind.resource, namespace, name)

        def change() -> Body:
            return self._store.patch(kind, key, subresource, lambda old: patched(old, operations))

        call = Call("json_patch", *key, operations, {"subresource": subresource})
        return await self._write(call, kind, change)

    async def replace(self, kind: Kind[T], manifest: Mapping[str, Any]) -> T:
        key = self._key(kind, manifest)
        if not manifest["metadata"].get("resourceVersion"):
            raise InvalidRequest(f"{key}: no metadata.resourceVersion")
        body = copy.deepcopy(dict(manifest))
        return await self._write(
            Call("replace", *key, manifest),
            kind,
            lambda: self._store.patch(kind, key, "", lambda _: body),
        )

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
        requests.object_path(kind, namespace, name)
        key = (kind.resource, namespace, name)
        options = {
            "uid": uid,
            "propagation": propagation,
            "grace_period_seconds": grace_period_seconds,
        }
        left: list[Body] = []

        def change() -> Body:
            old = self._store.existing(key)
            if uid is not None and old["metadata"]["uid"] != uid:
                raise Conflict(f"{key} is not {uid}", status=409)
            new = copy.deepcopy(old)
            new["metadata"].setdefault("deletionTimestamp", self._store.now())
            new["metadata"].setdefault("deletionGracePeriodSeconds", 0)
            stored = self._store.put(key, old, new)
            if key in self._store.objects:
                left.append(stored)
            return stored

        try:
            await self._write(Call("delete", *key, options=options), kind, change, left=left)
        except NotFound:
            return None
        return kind.decode(encoded(left[0])) if left else None

    async def create_subresource(
        self, kind: Kind[Any], namespace: str, name: str, subresource: str, body: Mapping[str, Any]
    ) -> None:
        """Knows ``binding`` and ``eviction``; an evicted pod is gone at once."""
        key = (kind.resource, namespace, name)
        applied = await self._begin(
            Call("create_subresource", *key, body, {"subresource": subresource})
        )
        old = self._store.existing(key)
        new = copy.deepcopy(old)
        if subresource == "binding":
            new.setdefault("spec", {})["nodeName"] = body["target"]["name"]
        else:
            new["metadata"].setdefault("deletionTimestamp", self._store.now())
        self._store.put(key, old, new)
        if applied is not None:
            raise applied

    # Inside -------------------------------------------------------------------------------------

    async def _begin(self, call: Call) -> KaitoError | None:
        """Log the call and raise what was arranged for it. Returns the error to raise after it."""
        self.calls.append(call)
        await asyncio.sleep(0)  # as a real call does, it lets others run
        for fault in self._faults:
            if (
                fault.times
                and fnmatch.fnmatchcase(call.method, fault.method)
                and fnmatch.fnmatchcase(call.kind, fault.kind)
            ):
                fault.times -= 1
                if not fault.applied:
                    raise fault.error
                return fault.error
        if call.kind in self.not_served:
            raise KindNotServed(f"{call.kind}: 404", status=404)
        return None

    async def _write(
        self,
        call: Call,
        kind: Kind[T],
        change: Callable[[], Body],
        *,
        left: list[Body] | None = None,
    ) -> T:
        key = (call.namespace, call.name)
        try:
            lost = await self._begin(call)
            is_new = (call.kind, *key) not in self._store.objects
            body = change()
            if lost is not None:
                raise lost
        except ApiError as err:
            if err.may_be_done:
                self._report(Written(kind, *key, "", None))
            raise
        meta = body["metadata"]
        is_gone = call.method == "delete" and not left
        version = "" if is_gone else meta["resourceVersion"]
        sent = call.body.get("metadata", {}) if isinstance(call.body, Mapping) else {}
        exclusive = is_new or sent.get("resourceVersion", version) != version
        self._report(Written(kind, *key, meta["uid"], version, is_gone, exclusive))
        return kind.decode(encoded(body))

    def _key(self, kind: Kind[Any], manifest: Mapping[str, Any]) -> ObjectKey:
        meta = manifest["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        requests.object_path(kind, namespace, name)
        return (kind.resource, namespace, name)

    def _report(self, written: Written) -> None:
        if self.on_written is not None:
            self.on_written(written)

    @contextlib.asynccontextmanager
    async def _watch(
        self, kind: Kind[Any], namespace: str, query: Mapping[str, str], metadata_only: bool
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        await self._begin(Call("watch", kind.resource, namespace, options=dict(query)))
        yield Stream(self._store, kind, namespace, query, metadata_only)
