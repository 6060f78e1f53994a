"""Answers as values, and the bodies of successful ones to what they say. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from kaito.errors import TransportError

D = TypeVar("D")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, of whatever status. ``body`` of an error is cut at ``errors.BODY_LIMIT``.

    ``may_be_second``: an earlier sending of the request, to which no answer came, may have been
    carried out.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    may_be_second: bool = False


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page of a list: the objects' bytes. ``continue_token`` is empty on the last page."""

    items: list[bytes]
    resource_version: str
    continue_token: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a DELETE did. ``is_waiting``: the object is there, for finalizers or grace period."""

    uid: str
    is_waiting: bool


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


class _DeletedMeta(msgspec.Struct, frozen=True, rename="camel"):
    uid: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: tuple[str, ...] | None = None


class _DeletedDetails(msgspec.Struct, frozen=True):
    uid: str = ""


class _Deleted(msgspec.Struct, frozen=True):
    """The object, or a Status that names its uid."""

    metadata: _DeletedMeta = _DeletedMeta()
    details: _DeletedDetails | None = None


class _Resource(msgspec.Struct, frozen=True):
    name: str


class _ResourceList(msgspec.Struct, frozen=True):
    resources: tuple[_Resource, ...]


class _Version(msgspec.Struct, frozen=True):
    major: str
    minor: str


_list: Final = msgspec.json.Decoder(_List)
_deleted: Final = msgspec.json.Decoder(_Deleted)
_resources: Final = msgspec.json.Decoder(_ResourceList)
_version: Final = msgspec.json.Decoder(_Version)


def read(decode: Callable[[bytes], D], body: bytes, what: str) -> D:
    """The body as ``decode`` makes it.

    Raises:
        TransportError: it cannot: a proxy answered in the server's place, or it is cut.
    """
    try:
        return decode(body)
    except (msgspec.DecodeError, ValueError) as err:
        raise TransportError(f"{what}: the answer cannot be read: {err}") from err


def raw_page(body: bytes) -> RawPage:
    """A list of any kind."""
    page = _list.decode(body)
    return RawPage(
        [bytes(item) for item in page.items or ()],
        page.metadata.resource_version,
        page.metadata.continue_,
    )


def deletion(body: bytes) -> Deletion:
    """The answer to a DELETE. An object that is gone is shown as it was last."""
    answer = _deleted.decode(body)
    meta = answer.metadata
    return Deletion(
        answer.details.uid if answer.details else meta.uid,
        meta.deletion_timestamp is not None
        and bool(meta.finalizers or meta.deletion_grace_period_seconds),
    )


def served(body: bytes) -> frozenset[str]:
    """The plurals in the description of a group and version; ``plural/subresource`` too."""
    return frozenset(resource.name for resource in _resources.decode(body).resources)


def version(body: bytes) -> tuple[int, int]:
    """Major and minor of ``/version``; some clouds add a plus sign."""
    answer = _version.decode(body)
    return int(answer.major), int(answer.minor.rstrip("+"))
