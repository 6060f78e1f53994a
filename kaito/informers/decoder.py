"""Bytes of a list or a watch to objects, one at a time. What cannot be stored is skipped here."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

import msgspec
import structlog

from kaito import metrics
from kaito.api.meta import ApiObject, Key, ObjectMeta
from kaito.clock import Clock
from kaito.constants import ANNOTATION_LAST_APPLIED
from kaito.errors import ApiError, KaitoError
from kaito.kube.errors import error_for
from kaito.kube.replies import Reply
from kaito.kube.resources import Kind

log = structlog.get_logger()
T = TypeVar("T", bound=ApiObject)

OBJECT_EVENTS: Final = ("MODIFIED", "ADDED", "DELETED")


class BadLine(KaitoError):
    """A line of a watch that is not an event."""

    reason = "BadLine"


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Head(msgspec.Struct):
    kind: str = ""
    api_version: str = msgspec.field(name="apiVersion", default="")


class _Metadata(msgspec.Struct):
    metadata: ObjectMeta


class _Name(msgspec.Struct, rename="camel"):
    name: str
    resource_version: str
    namespace: str = ""


class _Named(msgspec.Struct):
    metadata: _Name


class _Status(msgspec.Struct):
    code: int = 0


_event: Final = msgspec.json.Decoder(_Event).decode
_head: Final = msgspec.json.Decoder(_Head).decode
_metadata: Final = msgspec.json.Decoder(_Metadata).decode
_named: Final = msgspec.json.Decoder(_Named).decode
_status: Final = msgspec.json.Decoder(_Status).decode

_STARTS: Final = tuple((f'{{"type":"{event}","object":'.encode(), event) for event in OBJECT_EVENTS)


class Decoder(Generic[T]):
    """Makes objects of one kind; counts what it skips, and names each cause once in the log."""

    def __init__(self, kind: Kind[T], *, clock: Clock, metadata_only: bool) -> None:
        self._kind = kind
        self._decode = kind.decode
        self._monotonic = clock.monotonic
        self._head = (
            _Head("PartialObjectMetadata", "meta.k8s.io/v1")
            if metadata_only
            else _Head(kind.kind, kind.api_version)
        )
        self._head_starts = _head_starts(self._head)
        self._skipped: set[str] = set()
        self._labels = (kind.resource, "metadata" if metadata_only else "full")
        self._seconds = metrics.INFORMER_DECODE_SECONDS.labels(*self._labels)
        self._uncounted = 0.0

    def split(self, line: bytes) -> tuple[str, bytes]:
        """A watch line as (type, bytes of the object).

        The server always writes ``type`` first, so the common lines are cut without parsing, which
        is a third of the cost of an event. That is no guess: what follows the exact prefix must
        still decode as one whole JSON value, and whoever fails at it asks ``_parse`` what it was.

        Raises:
            BadLine: not an event.
        """
        if line.endswith(b"}"):
            for start, event in _STARTS:
                if line.startswith(start):
                    return event, line[len(start) : -1]
        return self._parse(line)

    def decode(self, raw: bytes, line: bytes = b"") -> T | None:
        """The object, or None when it is nothing to store.

        ``line``: the watch line it came in. Its bytes may have been cut unparsed, so when they do
        not decode, the line may be to blame.

        Raises:
            BadLine: it is.
        """
        began = self._monotonic()
        try:
            if not raw.startswith(self._head_starts) and not self._is_ours(raw):
                self.skip("wrong_kind", "")
                return None
            obj = self._decode(raw)
        except Exception as err:  # noqa: BLE001  a decoder that fails must not stop the watch (R33)
            if line:
                self._parse(line)
            self.skip("undecodable", str(err))
            return None
        self._uncounted += self._monotonic() - began
        meta = obj.metadata
        if not (meta.uid and meta.name and meta.resource_version):
            self.skip("incomplete", meta.name)
            return None
        # As large as the object itself, and read by nobody here. Of this object nobody knows yet.
        meta.annotations.pop(ANNOTATION_LAST_APPLIED, None)
        return obj

    def count_seconds(self) -> None:
        """Add what decoding has taken to its metric: once a run, as it costs a tenth of one."""
        self._seconds.inc(self._uncounted)
        self._uncounted = 0.0

    def identity(self, raw: bytes) -> tuple[Key, str] | None:
        """Key and version of what ``decode`` could not make; None: no object of the kind."""
        try:
            if not self._is_ours(raw):
                return None
            meta = _named(raw).metadata
        except msgspec.MsgspecError:
            return None
        return (meta.namespace, meta.name), meta.resource_version

    def bookmark(self, raw: bytes) -> ObjectMeta:
        """What a bookmark says: a version, and whether it ends the initial events.

        Raises:
            BadLine: it says nothing.
        """
        try:
            meta = _metadata(raw).metadata
        except msgspec.MsgspecError as err:
            raise self._bad(err) from err
        if not meta.resource_version:
            raise self._bad("a bookmark without a resourceVersion")
        return meta

    def error(self, raw: bytes) -> ApiError:
        """What an ERROR event means: by the code of its Status, as an answer of that status."""
        try:
            code = _status(raw).code
        except msgspec.MsgspecError:
            code = 0
        return error_for(Reply(code, {}, raw), what=f"watch of {self._kind}")

    def skip(self, reason: str, detail: str) -> None:
        """Count something that is not stored."""
        metrics.INFORMER_SKIPPED.labels(*self._labels, reason).inc()
        if reason not in self._skipped:
            self._skipped.add(reason)
            log.warning("skipped object", kind=str(self._kind), reason=reason, detail=detail)

    def _is_ours(self, raw: bytes) -> bool:
        """Items of a built-in kind's list have no kind at all; what has one must be of ours."""
        head = _head(raw)
        return not head.kind or head == self._head

    def _parse(self, line: bytes) -> tuple[str, bytes]:
        try:
            event = _event(line)
        except msgspec.MsgspecError as err:
            raise self._bad(err) from err
        return event.type, bytes(event.object)

    def _bad(self, err: object) -> BadLine:
        self.skip("bad_line", str(err))
        return BadLine(f"a watch line of {self._kind} is not an event: {err}")


def _head_starts(head: _Head) -> tuple[bytes, ...]:
    """How the server begins such an object: built-in kinds one way, custom resources the other."""
    kind = f'"kind":"{head.kind}"'
    version = f'"apiVersion":"{head.api_version}"'
    return (f"{{{kind},{version},".encode(), f"{{{version},{kind},".encode())
