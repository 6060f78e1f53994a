"""Answers as values, and the bodies of successful ones to what they say. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from kaito.errors import TransportError

D = TypeVar("D")


class Reply(msgspec.Struct):
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


class _Meta(msgspec.Struct, frozen=True, rename="camel"):
    """Of a list, of an object, or of a Status: what is said in its details."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    uid: str = ""
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: tuple[str, ...] | None = None


class _List(msgspec.Struct, frozen=True):
    metadata: _Meta
    items: list[msgspec.Raw] | None


class _Deleted(msgspec.Struct, frozen=True):
    """The object, or a Status that names its uid."""

    metadata: _Meta = _Meta()
    details: _Meta | None = None


_ITEMS: Final = b'"items":['
_PIECE: Final = 1_048_576
"""Bytes between two turns of the loop: about 2 ms."""
_TRIES: Final = 64

_list: Final = msgspec.json.Decoder(_List)
_deleted: Final = msgspec.json.Decoder(_Deleted)
_raw: Final = msgspec.json.Decoder(msgspec.Raw)


def read(decode: Callable[[bytes], D], body: bytes, what: object) -> D:
    """The body as ``decode`` makes it.

    Raises:
        TransportError: it cannot: a proxy answered in the server's place, or it is cut.
    """
    try:
        return decode(body)
    except (msgspec.DecodeError, ValueError, LookupError) as err:
        raise TransportError(f"{what}: the answer cannot be read: {err}") from err


async def page(body: bytes, what: object) -> RawPage:
    """A list of any kind. A long one in pieces: decoding 64 MB at once would hold the loop 80 ms.

    Raises:
        TransportError: see ``read``.
    """
    items: list[bytes] = []
    first = at = turn = body.find(_ITEMS) + len(_ITEMS)
    # Every item starts like the first, which may be true of something inside of one as well.
    start = body[first : body.find(b":", first) + 1]
    while len(body) - at > _PIECE and (item := _item(body, at, b"," + start)):
        items.append(item)
        at += len(item) + 1
        if at - turn > _PIECE:
            turn = at
            await asyncio.sleep(0)
    rest = read(_list.decode, body[:first] + body[at:], what)
    items += map(bytes, rest.items or ())
    return RawPage(items, rest.metadata.resource_version, rest.metadata.continue_)


def _item(body: bytes, at: int, separator: bytes) -> bytes | None:
    """The object at this place: the shortest one before a separator, as half of one is no JSON."""
    end = at
    for _ in range(_TRIES):
        if (end := body.find(separator, end + 1)) < 0:
            break
        with suppress(msgspec.DecodeError):
            _raw.decode(item := body[at:end])
            return item
    return None


def deletion(body: bytes) -> tuple[str, bool]:
    """What a DELETE did: uid, and whether the object waits, for finalizers or grace period.

    One that is gone is shown as it was last.
    """
    answer = _deleted.decode(body)
    meta = answer.metadata
    waits = bool(meta.finalizers or meta.deletion_grace_period_seconds)
    return (answer.details or meta).uid, waits and meta.deletion_timestamp is not None


def version(body: bytes) -> tuple[int, int]:
    """Major and minor of ``/version``; some clouds add a plus sign."""
    answer = msgspec.json.decode(body, type=dict[str, str])
    return int(answer["major"]), int(answer["minor"].rstrip("+"))
