"""An API server in memory, as far as the node agent sees one: lists, watches, patches, deletes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kaito.api.meta import Key
from kaito.errors import Conflict, KaitoError, KindNotServed, NotFound
from kaito.kube.resources import Kind

Body = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """What ``list_page`` answers."""

    items: list[bytes]
    resource_version: str
    continue_token: str = ""


class FakeCluster:
    """The methods of ``KubeClient`` that the sandbox uses, over a dict."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[Key, Body]] = {}
        self.patches: list[tuple[str, str, Body]] = []
        self.errors: list[KaitoError] = []
        self.page_size = 500
        self.unserved: set[str] = set()
        self._version = 0
        self._watchers: dict[str, list[asyncio.Queue[bytes | None]]] = {}

    # What a test does

    def put(self, plural: str, body: Body) -> Body:
        """Write an object as someone else; a new one gets a uid."""
        meta = body["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        known = self.objects.setdefault(plural, {}).get(key)
        meta.setdefault(
            "uid", known["metadata"]["uid"] if known else f"uid-{plural}-{meta['name']}"
        )
        self._store(plural, key, body, "MODIFIED" if known else "ADDED")
        return body

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """The object goes, whatever it was."""
        body = self.objects[plural].pop((namespace, name))
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._tell(plural, "DELETED", body)

    def read(self, plural: str, namespace: str, name: str) -> Body | None:
        """The object as it is."""
        return self.objects.get(plural, {}).get((namespace, name))

    def end_watches(self, plural: str, *lines: Body) -> None:
        """The server closes every watch, after these lines."""
        for queue in self._watchers.pop(plural, []):
            for line in lines:
                queue.put_nowait(msgspec.json.encode(line))
            queue.put_nowait(None)

    def say(self, plural: str, line: Body) -> None:
        """One line to every watch."""
        for queue in self._watchers.get(plural, []):
            queue.put_nowait(msgspec.json.encode(line))

    # What the client's user does

    async def list_page(self, kind: Kind[Any], *, namespace: str, query: Mapping[str, str]) -> Page:
        self._fault()
        if kind.plural in self.unserved:
            raise KindNotServed(kind.resource)
        found = [msgspec.json.encode(o) for o in self.objects.get(kind.plural, {}).values()]
        start = int(query.get("continue", "0"))
        end = start + self.page_size
        token = str(end) if end < len(found) else ""
        return Page(found[start:end], str(self._version), token)

    async def list(self, kind: Kind[Any], *, label_selector: str = "") -> tuple[Any, ...]:
        found = (kind.decode(msgspec.json.encode(o)) for o in self.objects[kind.plural].values())
        return tuple(o for o in found if not label_selector or label_selector in o.metadata.labels)

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        body = self.read(kind.plural, namespace, name)
        return None if body is None else kind.decode(msgspec.json.encode(body))

    @contextlib.asynccontextmanager
    async def watch(
        self, kind: Kind[Any], *, namespace: str, query: Mapping[str, str], idle_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self._fault()
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watchers.setdefault(kind.plural, []).append(queue)

        async def lines() -> AsyncIterator[bytes]:
            while (line := await queue.get()) is not None:
                yield line

        yield lines()

    async def apply(self, kind: Kind[Any], manifest: Body, *, field_manager: str) -> None:
        self._fault()
        meta = manifest["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        known = self.objects.setdefault(kind.plural, {}).get(key)
        body = _merge(known or {}, msgspec.json.decode(msgspec.json.encode(manifest)))
        body["metadata"].setdefault("uid", f"uid-{kind.plural}-{meta['name']}")
        self._store(kind.plural, key, body, "MODIFIED" if known else "ADDED")

    async def merge_patch(
        self, kind: Kind[Any], namespace: str, name: str, body: Body, *, subresource: str = ""
    ) -> None:
        self._fault()
        known = self._existing(kind, namespace, name)
        for field in ("uid", "resourceVersion"):
            if (
                body.get("metadata", {}).get(field, known["metadata"][field])
                != known["metadata"][field]
            ):
                raise Conflict(f"{name}: other {field}")
        self.patches.append((kind.plural, name, body))
        self._store(kind.plural, (namespace, name), _merge(known, body), "MODIFIED")

    async def delete(
        self,
        kind: Kind[Any],
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_period_seconds: int | None = None,
    ) -> None:
        self._fault()
        known = self._existing(kind, namespace, name)
        if uid not in (None, known["metadata"]["uid"]):
            raise Conflict(f"{name}: other uid")
        if known["metadata"].get("finalizers") or (
            kind.plural == "pods" and grace_period_seconds != 0
        ):
            marked = _merge(known, {"metadata": {"deletionTimestamp": "T"}})
            self._store(kind.plural, (namespace, name), marked, "MODIFIED")
        else:
            self.remove(kind.plural, namespace, name)

    def _existing(self, kind: Kind[Any], namespace: str, name: str) -> Body:
        if (known := self.read(kind.plural, namespace, name)) is None:
            raise NotFound(name)
        return known

    def _fault(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def _store(self, plural: str, key: Key, body: Body, event: str) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[plural][key] = body
        self._tell(plural, event, body)

    def _tell(self, plural: str, event: str, body: Body) -> None:
        self.say(plural, {"type": event, "object": body})


def _merge(target: Body, patch: Body) -> Body:
    result = dict(target)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            old = result.get(key)
            result[key] = _merge(old if isinstance(old, dict) else {}, value)
        else:
            result[key] = value
    return result
