"""The objects, versions and events of FakeKube, and the watches of them."""

from __future__ import annotations

import asyncio
import bisect
import copy
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kaito.clock import rfc3339
from kaito.errors import ApplyConflict, Cause, Conflict, InvalidRequest, KaitoError, NotFound
from kaito.kube.resources import Kind
from tests.fakes.documents import Body, encoded, get_path, leaves, remove_path, selector, set_path

ObjectKey = tuple[str, str, str]  # resource, namespace, name

WITHOUT_STATUS = frozenset({"configmaps", "secrets", "leases", "events", "namespaces"})


@dataclass(frozen=True)
class Event:
    version: int
    type: str
    resource: str
    old: Body | None
    new: Body  # of a deletion: as it was last, with the version of the deletion


class ObjectStore:
    """One cluster's objects. A stored body is never changed, only replaced."""

    def __init__(self, clock: Any) -> None:
        self.objects: dict[ObjectKey, Body] = {}
        self.events: list[Event] = []
        self.version = 100
        self.oldest = 0
        self.news = asyncio.Event()
        self.streams = 0  # raised to end the watches that are open
        self.cut: KaitoError | None = None
        self._clock = clock
        self._managers: dict[ObjectKey, dict[str, dict[tuple[str, ...], Any]]] = {}
        self._versions = itertools.count(101)
        self._uids = itertools.count(1)

    def of(self, kind: Kind[Any]) -> list[Body]:
        return [body for key, body in sorted(self.objects.items()) if key[0] == kind.resource]

    def end_streams(self, error: KaitoError | None) -> None:
        self.streams += 1
        self.cut = error
        self._wake()

    def compact(self) -> None:
        self.oldest = self.version
        self.events.clear()

    def apply(
        self,
        key: ObjectKey,
        manifest: Mapping[str, Any],
        *,
        manager: str,
        uid: str | None,
        force: bool,
    ) -> Body:
        old = self.objects.get(key)
        if uid is not None and (old is None or old["metadata"]["uid"] != uid):
            raise Conflict(f"{key} is not {uid}", status=409)
        version = manifest["metadata"].get("resourceVersion")
        if version and (old is None or old["metadata"]["resourceVersion"] != version):
            raise Conflict(f"{key} was modified", status=409)
        wanted = leaves({k: v for k, v in manifest.items() if k != "status"})
        wanted.pop(("metadata", "resourceVersion"), None)
        self._take(key, manager, wanted, old or {}, force=force)
        new = copy.deepcopy(old) if old else {}
        managers = self._managers.setdefault(key, {})
        others = {p for m, owned in managers.items() if m != manager for p in owned}
        for path in managers.get(manager, {}):
            if path not in wanted and path not in others:
                remove_path(new, path)
        for path, value in wanted.items():
            set_path(new, path, copy.deepcopy(value))
        managers[manager] = wanted
        return self.put(key, old, new)

    def patch(
        self, kind: Kind[Any], key: ObjectKey, subresource: str, change: Callable[[Body], Body]
    ) -> Body:
        old = self.existing(key)
        new = change(copy.deepcopy(old))
        was, now = old["metadata"], new["metadata"]
        if now.get("uid", was["uid"]) != was["uid"]:
            raise Conflict(f"{key} is not {now['uid']}", status=422)
        if now.get("resourceVersion", was["resourceVersion"]) != was["resourceVersion"]:
            raise Conflict(f"{key} was modified", status=409)
        if subresource == "status":
            new = {**copy.deepcopy(old), "status": new.get("status", {})}
            now = new["metadata"]
        elif has_status(kind):
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        for name in ("uid", "resourceVersion", "creationTimestamp", "generation"):
            if name in was:
                now[name] = was[name]
        added = set(now.get("finalizers") or ()) - set(was.get("finalizers") or ())
        if "deletionTimestamp" in was and added:
            cause = Cause("metadata.finalizers", "FieldValueForbidden", "no new finalizers")
            raise InvalidRequest(f"{key}: {cause.message}", status=422, causes=[cause])
        return self.put(key, old, new)

    def _take(
        self,
        key: ObjectKey,
        manager: str,
        wanted: Mapping[tuple[str, ...], Any],
        old: Body,
        *,
        force: bool,
    ) -> None:
        """Take fields from other managers, or refuse to."""
        causes = []
        for other, owned in self._managers.get(key, {}).items():
            if other == manager:
                continue
            for path in [p for p in owned if p in wanted and get_path(old, p) != wanted[p]]:
                text = f'conflict with "{other}"'
                causes.append(Cause("." + ".".join(path), "FieldManagerConflict", text))
                if force:
                    del owned[path]
        if causes and not force:
            raise ApplyConflict(f"{key}: conflicts", status=409, causes=causes)

    def put(self, key: ObjectKey, old: Body | None, new: Body) -> Body:
        """The one place where an object changes."""
        meta = new["metadata"]
        for name in [n for n, v in meta.items() if v is None or v == [] or v == {}]:
            del meta[name]
        if old is None:
            meta.update(
                uid=meta.get("uid") or f"uid-{next(self._uids)}",
                creationTimestamp=meta.get("creationTimestamp") or self.now(),
            )
            if key[0] != "configmaps":
                meta.setdefault("generation", 1)
        elif new == old:
            return old
        elif "generation" in old["metadata"] and content(new) != content(old):
            meta["generation"] = old["metadata"]["generation"] + 1
        self.version = next(self._versions)
        meta["resourceVersion"] = str(self.version)
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            self.objects.pop(key, None)
            self._managers.pop(key, None)
            self.events.append(Event(self.version, "DELETED", key[0], old, new))
        else:
            self.objects[key] = new
            type_ = "ADDED" if old is None else "MODIFIED"
            self.events.append(Event(self.version, type_, key[0], old, new))
        self._wake()
        return new

    def existing(self, key: ObjectKey) -> Body:
        if key not in self.objects:
            raise NotFound(f"{key} is not there", status=404)
        return self.objects[key]

    def now(self) -> str:
        return rfc3339(1_800_000_000.0 if self._clock is None else self._clock.now())

    def _wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Stream:
    """The lines of one watch."""

    def __init__(
        self,
        store: ObjectStore,
        kind: Kind[Any],
        namespace: str,
        query: Mapping[str, str],
        metadata_only: bool,
    ) -> None:
        self._store = store
        self._kind = kind
        self._matches = selector(namespace, query)
        self._metadata_only = metadata_only
        self._stream = store.streams
        self._lines: list[bytes] = []
        version = query.get("resourceVersion") or "0"
        self._seen = int(version)
        if version == "0" or query.get("sendInitialEvents") == "true":
            self._seen = store.version
            self._lines += [self._line("ADDED", b) for b in store.of(kind) if self._matches(b)]
            if query.get("sendInitialEvents") == "true":
                self._lines.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
        elif self._seen < store.oldest:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410}
            self._lines.append(
                json.dumps({"type": "ERROR", "object": {**status, "reason": "Expired"}}).encode()
            )
            self._stream = -1  # ends after it

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        while not self._lines:
            if self._stream != self._store.streams:
                if self._store.cut is not None and self._stream >= 0:
                    raise self._store.cut
                raise StopAsyncIteration
            news = self._store.news
            self._collect()
            if not self._lines:
                await news.wait()
        return self._lines.pop(0)

    def _collect(self) -> None:
        events = self._store.events
        for event in events[bisect.bisect(events, self._seen, key=lambda e: e.version) :]:
            self._seen = event.version
            if event.resource != self._kind.resource:
                continue
            was = event.old is not None and self._matches(event.old)
            now = event.type != "DELETED" and self._matches(event.new)
            if now:
                self._lines.append(self._line("MODIFIED" if was else "ADDED", event.new))
            elif was:  # deleted, or left the selector: shown as it was, with the new version
                assert event.old is not None
                meta = {**event.old["metadata"], "resourceVersion": str(event.version)}
                self._lines.append(self._line("DELETED", {**event.old, "metadata": meta}))

    def _line(self, type_: str, body: Body) -> bytes:
        raw = encoded(body, metadata_only=self._metadata_only)
        return b'{"type":"%s","object":%s}' % (type_.encode(), raw)

    def _bookmark(self, annotations: Mapping[str, str]) -> bytes:
        meta = {"resourceVersion": str(self._seen), "annotations": annotations}
        body = {"kind": self._kind.kind, "apiVersion": self._kind.api_version, "metadata": meta}
        return json.dumps({"type": "BOOKMARK", "object": body}).encode()


def has_status(kind: Kind[Any]) -> bool:
    return kind.plural not in WITHOUT_STATUS


def content(body: Body) -> Body:
    """What a generation counts the changes of."""
    content = {k: v for k, v in body.items() if k not in ("metadata", "status")}
    return {**content, "deletion": body["metadata"].get("deletionTimestamp")}
