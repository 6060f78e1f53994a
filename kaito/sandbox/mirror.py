"""List and watch, small: enough for the sandbox, which may not use the operator's informers.

On any trouble it lists again; what it missed shows as the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import structlog

from kaito.api.meta import ApiObject, ObjectMeta
from kaito.clock import Clock
from kaito.errors import ApiError, Expired, KaitoError
from kaito.kube.client import KubeClient
from kaito.kube.resources import Kind

T = TypeVar("T", bound=ApiObject)

_PAGE = "500"
_WATCH_SECONDS = 300
_IDLE_SECONDS = 90.0  # a bookmark comes every minute
_PAUSE_SECONDS = 1.0

log = structlog.get_logger()


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct):
    metadata: ObjectMeta


_event = msgspec.json.Decoder(_Event)
_bookmark = msgspec.json.Decoder(_Bookmark)


async def follow(
    kube: KubeClient,
    kind: Kind[T],
    *,
    clock: Clock,
    replace: Callable[[Sequence[T]], None],
    changed: Callable[[T], None],
    deleted: Callable[[T], None],
    query: Mapping[str, str] | None = None,
) -> None:
    """Keep calling back with what is there; never returns.

    ``replace``: all objects, after each list. ``changed``: one that was added or modified.
    """
    selection = dict(query or {})
    while True:
        try:
            version = await _list(kube, kind, selection, replace)
            while True:
                version = await _watch(kube, kind, selection, version, changed, deleted)
        except Expired:
            log.debug("listed again: resource version too old", kind=str(kind))
        except KaitoError as err:
            log.warning("watch broke", kind=str(kind), reason=err.reason, error=str(err))
            await clock.sleep(_PAUSE_SECONDS)


async def _list(
    kube: KubeClient,
    kind: Kind[T],
    selection: Mapping[str, str],
    replace: Callable[[Sequence[T]], None],
) -> str:
    found: list[T] = []
    query = {**selection, "limit": _PAGE}
    while True:
        page = await kube.list_page(kind, namespace="", query=query)
        found += [kind.decode(item) for item in page.items]
        if not page.continue_token:
            replace(found)
            return page.resource_version
        query["continue"] = page.continue_token


async def _watch(
    kube: KubeClient,
    kind: Kind[T],
    selection: Mapping[str, str],
    version: str,
    changed: Callable[[T], None],
    deleted: Callable[[T], None],
) -> str:
    """One watch, to its end; the resource version to go on from."""
    query = {
        **selection,
        "resourceVersion": version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(_WATCH_SECONDS),
    }
    async with kube.watch(kind, namespace="", query=query, idle_seconds=_IDLE_SECONDS) as lines:
        async for line in lines:
            event = _event.decode(line)
            match event.type:
                case "ERROR":
                    raise _refusal(event.object)
                case "BOOKMARK":
                    version = _bookmark.decode(event.object).metadata.resource_version
                case _:
                    obj = kind.decode(bytes(event.object))
                    version = obj.metadata.resource_version
                    (deleted if event.type == "DELETED" else changed)(obj)
    return version


def _refusal(raw: msgspec.Raw) -> ApiError:
    status: dict[str, Any] = msgspec.json.decode(raw)
    error = Expired if status.get("code") == 410 else ApiError
    return error(str(status.get("message", "")), status=int(status.get("code", 0)))
