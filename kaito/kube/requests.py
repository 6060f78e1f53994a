"""Requests as values: paths, media types and bodies. Plain functions, no I/O."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
import orjson

from kaito.errors import InvalidRequest
from kaito.kube.resources import Kind

JSON: Final = "application/json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

METADATA: Final = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST: Final = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""A list asked for as METADATA, and an object or watch asked for as this, is a 406."""

_STRICT: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


class Request(msgspec.Struct, frozen=True):
    """One call. ``repeatable``: doing it twice is doing it once, as with every GET."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    content_type: str = JSON
    accept: str = JSON
    repeatable: bool = False

    @property
    def is_mutating(self) -> bool:
        """It needs leadership."""
        return self.method != "GET"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def collection_path(kind: Kind[Any], namespace: str = "") -> str:
    """Where the objects of a kind are listed and created. No namespace: those of all.

    Raises:
        InvalidRequest: the namespace cannot be one, or the kind has none.
    """
    version = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
    if not namespace:
        return f"{version}/{kind.plural}"
    if not kind.namespaced:
        raise InvalidRequest(f"{kind} are cluster-scoped: not in a namespace {namespace!r}")
    return f"{version}/namespaces/{_segment(namespace)}/{kind.plural}"


def object_path(kind: Kind[Any], namespace: str, name: str, subresource: str = "") -> str:
    """Where one object, or a part of it, is.

    Raises:
        InvalidRequest: name or namespace cannot be one, or the namespace is missing.
    """
    if kind.namespaced and not namespace:
        raise InvalidRequest(f"{kind} {name!r}: no namespace given")
    path = f"{collection_path(kind, namespace)}/{_segment(name)}"
    return f"{path}/{subresource}" if subresource else path


def encode(body: object) -> bytes:
    """A request's body.

    Raises:
        InvalidRequest: it holds what JSON cannot: NaN, infinity, a foreign type.
    """
    try:
        encoded = orjson.dumps(body, _plain, _STRICT)
        if b"null" in encoded:  # orjson writes NaN and infinity so, this refuses them
            json.dumps(body, default=_plain, allow_nan=False)
    except (ValueError, TypeError) as err:
        raise InvalidRequest(f"cannot be sent as JSON: {err}") from err
    return encoded


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):  # read-only views of dicts
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")


@functools.lru_cache(maxsize=256)  # the churn of names must not grow the process
def _segment(text: str) -> str:
    """One path segment. Dots and slashes would make it another path, a percent sign two names."""
    if text in ("", ".", "..") or "/" in text or "%" in text:
        raise InvalidRequest(f"not a name: {text!r}")
    return quote(text, safe="")
