"""Stand-ins at the seams of this room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from msgspec import json

from kaito.api.meta import Key, ObjectMeta
from kaito.errors import AlreadyExists, Conflict, NotFound
from kaito.informers.handlers import Change
from kaito.kube.resources import Kind


class Thing:
    """An object of any kind."""

    def __init__(self, name: str, version: str = "1", namespace: str = "default") -> None:
        self.metadata = ObjectMeta(
            name=name, namespace=namespace, uid=f"uid-{name}", resource_version=version
        )


THINGS: Kind[Thing] = Kind("", "v1", "Thing", "things", True, lambda raw: Thing(raw.decode()))


class FakeInformer:
    """An informer that a test feeds by hand. What it was told of is there for later handlers."""

    def __init__(self, *, synced: bool = True) -> None:
        self.kind = THINGS
        self.namespace = ""
        self.optional = False
        self.is_served = True
        self.last_error: str | None = None
        self.silent = 0.0
        self.idle_limit = 90.0
        self.handlers: list[Callable[[Any], None]] = []
        self.objects: dict[Key, Any] = {}
        self.synced = asyncio.Event()
        if synced:
            self.synced.set()

    @property
    def has_synced(self) -> bool:
        return self.synced.is_set()

    def staleness(self) -> float:
        return self.silent

    def add_handler(self, handler: Callable[[Any], None]) -> Callable[[Any], None]:
        for obj in self.objects.values():
            handler(Change(None, obj, initial=True))
        self.handlers.append(handler)
        return handler

    def remove_handler(self, registration: Callable[[Any], None]) -> None:
        self.handlers.remove(registration)

    async def wait_synced(self) -> None:
        await self.synced.wait()

    def tell(self, change: Change[Any]) -> None:
        key = change.obj.metadata.key
        self.objects.pop(key, None)
        if change.new is not None:
            self.objects[key] = change.new
        for handler in self.handlers:
            handler(change)


class FakeApiServer:
    """Objects of any kind by (plural, namespace, name), with resource versions and a call log.

    ``fault(verb, calls so far)`` may raise, or wait, before a call has its effect; ``after`` the
    same when it has had it.
    """

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.calls: list[str] = []
        self.bodies: list[Mapping[str, Any]] = []
        self.version = 0
        self.watchers: list[asyncio.Queue[bytes]] = []
        self.closed = 0

    def client(self) -> FakeClient:
        return FakeClient(self)

    def put(self, kind: Kind[Any], manifest: Mapping[str, Any]) -> bytes:
        self.version += 1
        metadata = {**manifest["metadata"], "resourceVersion": str(self.version)}
        raw = json.encode({**manifest, "metadata": metadata})
        self.objects[_key(kind, manifest)] = json.decode(raw)
        for watcher in self.watchers:
            watcher.put_nowait(b'{"type":"MODIFIED","object":%b}' % raw)
        return raw


Fault = Callable[[str], Any]


class FakeClient:
    """The part of KubeClient this room uses."""

    def __init__(self, server: FakeApiServer) -> None:
        self.server = server
        self.before: Fault | None = None
        self.after: Fault | None = None

    async def _around(self, verb: str, effect: Callable[[], bytes | None]) -> bytes | None:
        self.server.calls.append(verb)
        if self.before is not None and (wait := self.before(verb)) is not None:
            await wait
        result = effect()
        if self.after is not None and (wait := self.after(verb)) is not None:
            await wait
        return result

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        def effect() -> bytes | None:
            obj = self.server.objects.get((kind.plural, namespace, name))
            return None if obj is None else json.encode(obj)

        raw = await self._around("GET", effect)
        return None if raw is None else kind.decode(raw)

    async def create(self, kind: Kind[Any], manifest: Mapping[str, Any]) -> Any:
        def effect() -> bytes:
            if _key(kind, manifest) in self.server.objects:
                raise AlreadyExists("there", status=409)
            self.server.bodies.append(manifest)
            return self.server.put(kind, manifest)

        raw = await self._around("POST", effect)
        assert raw is not None
        return kind.decode(raw)

    async def replace(self, kind: Kind[Any], manifest: Mapping[str, Any]) -> Any:
        def effect() -> bytes:
            current = self.server.objects.get(_key(kind, manifest))
            if current is None:
                raise NotFound("gone", status=404)
            sent = manifest["metadata"]["resourceVersion"]
            if current["metadata"]["resourceVersion"] != sent:
                raise Conflict("changed", status=409)
            self.server.bodies.append(manifest)
            return self.server.put(kind, manifest)

        raw = await self._around("PUT", effect)
        assert raw is not None
        return kind.decode(raw)

    async def merge_patch(
        self, kind: Kind[Any], namespace: str, name: str, body: Mapping[str, Any]
    ) -> Any:
        def effect() -> bytes:
            current = self.server.objects.get((kind.plural, namespace, name))
            if current is None:
                raise NotFound("gone", status=404)
            self.server.bodies.append(body)
            return self.server.put(kind, {**current, **body})

        raw = await self._around("PATCH", effect)
        assert raw is not None
        return kind.decode(raw)

    @asynccontextmanager
    async def watch(self, kind: Kind[Any], **_: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.server.watchers.append(lines)

        async def read() -> AsyncIterator[bytes]:
            while True:
                yield await lines.get()

        try:
            yield read()
        finally:
            self.server.watchers.remove(lines)

    async def close(self) -> None:
        self.server.closed += 1


def _key(kind: Kind[Any], manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return kind.plural, metadata["namespace"], metadata["name"]
