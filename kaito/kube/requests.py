"""Requests as values: paths, media types and bodies. Plain functions, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from kaito.errors import InvalidRequest
from kaito.kube.resources import Kind

JSON: Final = "application/json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"

METADATA: Final = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST: Final = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""A list asked for as METADATA, and an object or watch asked for as this, is a 406."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call. ``repeatable``: doing it twice is doing it once, as with every GET."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content_type: str = JSON
    accept: str = JSON
    repeatable: bool = False

    @property
    def is_mutating(self) -> bool:
        """It needs leadership."""
        return self.method != "GET"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def version_path(kind: Kind[Any]) -> str:
    """Where the kind's group and version are described."""
    return f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"


def collection_path(kind: Kind[Any], namespace: str = "") -> str:
    """Where the objects of a kind are listed and created. No namespace: those of all.

    Raises:
        InvalidRequest: the namespace cannot be one, or the kind has none.
    """
    if not namespace:
        return f"{version_path(kind)}/{kind.plural}"
    if not kind.namespaced:
        raise InvalidRequest(f"{kind} are cluster-scoped: not in a namespace {namespace!r}")
    return f"{version_path(kind)}/namespaces/{_segment(namespace)}/{kind.plural}"


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
    # Not orjson: it writes NaN as null, and bodies are small.
    try:
        return json.dumps(
            body, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain
        ).encode()
    except (ValueError, TypeError) as err:
        raise InvalidRequest(f"cannot be sent as JSON: {err}") from err


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):  # read-only views of dicts
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")


def _segment(text: str) -> str:
    """One path segment. Dots and slashes would make it another path, a percent sign two names."""
    if text in ("", ".", "..") or "/" in text or "%" in text:
        raise InvalidRequest(f"not a name: {text!r}")
    return quote(text, safe="")
