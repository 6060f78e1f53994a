"""A client whose answers a test writes down, and objects to answer with."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from kaito.api.meta import ObjectMeta, View
from kaito.errors import ApiError
from kaito.kube.resources import Kind
from tests.fakes.clock import settle


class Thing(View):
    metadata: ObjectMeta
    colour: str = ""


THINGS: Kind[Thing] = Kind(
    "ex.io", "v1", "Thing", "things", True, msgspec.json.Decoder(Thing).decode
)


def thing(name: str, version: int | str, **more: Any) -> Thing:
    return THINGS.decode(raw(name, version, **more))


def raw(
    name: str,
    version: int | str,
    *,
    namespace: str = "ns",
    uid: str | None = None,
    colour: str = "",
    kind: str = "Thing",
    **meta: Any,
) -> bytes:
    metadata = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{name}" if uid is None else uid,
        "resourceVersion": str(version),
        **meta,
    }
    return dump({"kind": kind, "apiVersion": "ex.io/v1", "metadata": metadata, "colour": colour})


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def line(type_: str, obj: bytes) -> bytes:
    return b'{"type":"' + type_.encode() + b'","object":' + obj + b"}"


def added(name: str, version: int, **more: Any) -> bytes:
    return line("ADDED", raw(name, version, **more))


def modified(name: str, version: int, **more: Any) -> bytes:
    return line("MODIFIED", raw(name, version, **more))


def deleted(name: str, version: int, **more: Any) -> bytes:
    return line("DELETED", raw(name, version, **more))


def bookmark(version: int, *, marker: bool = False) -> bytes:
    meta: dict[str, Any] = {"resourceVersion": str(version)}
    if marker:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", dump({"kind": "Thing", "apiVersion": "ex.io/v1", "metadata": meta}))


def failure(code: int, *, reason: str = "", cause: str = "") -> bytes:
    status: dict[str, Any] = {"kind": "Status", "code": code, "reason": reason, "message": "no"}
    if cause:
        status["details"] = {"causes": [{"reason": cause, "message": "no"}]}
    return line("ERROR", dump(status))


@dataclass
class Page:
    items: Sequence[bytes]
    resource_version: str
    continue_token: str = ""


class Feed:
    """One open watch: the test sends lines, ends it or breaks it."""

    def __init__(self, *lines: bytes) -> None:
        self._queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()
        self.is_closed = False
        self.send(*lines)

    def send(self, *lines: bytes) -> Feed:
        for each in lines:
            self._queue.put_nowait(each)
        return self

    def end(self) -> Feed:
        self._queue.put_nowait(None)
        return self

    def fail(self, error: BaseException) -> Feed:
        self._queue.put_nowait(error)
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item


class FakeKube:
    """Answers from what was written down; a watch nobody wrote down stays open and silent.

    ``asked``: a word and the resourceVersion per call: ``"stream -"``, ``"list 0"``, ``"watch 7"``.
    """

    def __init__(self) -> None:
        self.pages: deque[Page | BaseException] = deque()
        self.feeds: deque[Feed | BaseException] = deque()
        self.open: Feed = Feed()
        self.opened: list[Feed] = []
        self.asked: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.options: list[dict[str, Any]] = []
        self.version: tuple[int, int] | ApiError = (1, 30)
        self.hold: asyncio.Event | None = None  # no watch is answered before it is set
        self.turns = 0  # of the loop before each answer

    async def server_version(self) -> tuple[int, int]:
        if isinstance(self.version, ApiError):
            raise self.version
        return self.version

    async def list_page(
        self,
        kind: Kind[Any],
        *,
        namespace: str = "",
        query: Mapping[str, str],
        metadata_only: bool = False,
    ) -> Page:
        version = query.get("resourceVersion", "-")
        self._note("next" if "continue" in query else "list", version, query)
        self.options.append({"namespace": namespace, "metadata_only": metadata_only})
        await settle(self.turns)
        answer = self.pages.popleft()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    @asynccontextmanager
    async def watch(
        self,
        kind: Kind[Any],
        *,
        namespace: str = "",
        query: Mapping[str, str],
        idle_seconds: float,
        metadata_only: bool = False,
    ) -> AsyncIterator[Feed]:
        verb = "stream" if "sendInitialEvents" in query else "watch"
        self._note(verb, query.get("resourceVersion", "-"), query)
        self.options.append({"namespace": namespace, "metadata_only": metadata_only})
        if self.hold is not None:
            await self.hold.wait()
        await settle(self.turns)
        answer = self.feeds.popleft() if self.feeds else Feed()
        if isinstance(answer, BaseException):
            raise answer
        self.open = answer
        self.opened.append(answer)
        try:
            yield answer
        finally:
            answer.is_closed = True

    def _note(self, verb: str, version: str, query: Mapping[str, str]) -> None:
        self.asked.append(f"{verb} {version}")
        self.queries.append(dict(query))
