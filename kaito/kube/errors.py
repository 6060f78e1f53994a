"""The API server's door to the error tree: status, reason, details and causes in, a type out.

Text is never matched: the same words come from proxies, other versions and webhooks.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import msgspec

from kaito import errors
from kaito.errors import ApiError, Cause
from kaito.kube.replies import Reply

BODY_LIMIT: Final = 65_536
"""Bytes of an error's body that are read; a proxy may send megabytes of HTML."""

_MESSAGE_LIMIT: Final = 1_000
_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    **dict.fromkeys((400, 405, 406, 413, 415, 422), errors.InvalidRequest),
    401: errors.Unauthorized,
    403: errors.Forbidden,
    409: errors.Conflict,
    410: errors.Expired,
    429: errors.TooManyRequests,
}


class _Cause(msgspec.Struct, frozen=True):
    field: str = ""
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct, frozen=True):
    name: str = ""
    kind: str = ""
    causes: tuple[_Cause, ...] | None = None


class _Status(msgspec.Struct, frozen=True):
    kind: str = ""
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_decoder: Final = msgspec.json.Decoder(_Status)


def error_for(
    reply: Reply, *, what: str, resource: str = "", is_json_patch: bool = False
) -> ApiError:
    """The error that an answer means.

    ``what``: the request in words, the start of the message. ``resource``: the plural it was for,
    which tells a missing namespace from a missing object. ``is_json_patch``: its failed tests
    look like any other 422, but for their empty details.
    """
    answer = _parse(reply)
    details = answer.details or _Details()
    causes = tuple(dict.fromkeys(details.causes or ()))
    is_secret = resource == "secrets"  # what is said about its values quotes them
    return _type(reply.status, answer, resource=resource, is_json_patch=is_json_patch)(
        f"{what}: {_text(reply, answer, causes, is_secret=is_secret)}",
        status=reply.status,
        causes=[Cause(c.field, c.reason, "" if is_secret else c.message) for c in causes],
        retry_after=retry_after(reply),
    )


def retry_after(reply: Reply) -> float | None:
    """Seconds the server asks to wait, of a 429 or 5xx; None when it does not say.

    Zero, or a date that has passed, says nothing: obeyed, it would be a loop without a pause.
    """
    text = reply.headers.get("Retry-After", "").strip()
    if not text or (reply.status != HTTPStatus.TOO_MANY_REQUESTS and reply.status < 500):
        return None
    if text.isascii() and text.isdigit():
        return float(text) or None
    until, now = parse_date(text), parse_date(reply.headers.get("Date", ""))
    return until - now if until is not None and now is not None and until > now else None


def is_version_too_large(reply: Reply) -> bool:
    """A list asked for a version the server has not reached.

    Its Retry-After is not obeyed: the informer asks at once, with another version (facts R9).
    """
    return _type(reply.status, _parse(reply)) is errors.ResourceVersionTooLarge


def parse_date(text: str) -> float | None:
    """An HTTP date as seconds since the epoch; None for anything else."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def _parse(reply: Reply) -> _Status:
    try:
        answer = _decoder.decode(reply.body)
    except msgspec.DecodeError:  # text, HTML, empty, or cut
        return _Status()
    return answer if answer.kind == "Status" else _Status()


def _type(
    status: int, answer: _Status, *, resource: str = "", is_json_patch: bool = False
) -> type[ApiError]:
    details = answer.details or _Details()
    causes = details.causes or ()
    reasons = {cause.reason for cause in causes}
    match status:
        case 403 if "NamespaceTerminating" in reasons:
            return errors.NamespaceTerminating
        case 404 if not details.name:
            return errors.KindNotServed
        case 404 if details.kind == "namespaces" != resource:
            return errors.NamespaceMissing
        case 404:
            return errors.NotFound
        case 409 if answer.reason == "AlreadyExists":
            return errors.AlreadyExists
        case 409 if "FieldManagerConflict" in reasons:
            return errors.ApplyConflict
        case 422 if is_json_patch and not details.name and not causes:
            return errors.PatchTestFailed
        case 422 if {cause.field for cause in causes} == {"metadata.uid"}:
            return errors.Conflict  # we named the object we meant, and this is another
        case 504 if "ResourceVersionTooLarge" in reasons:
            return errors.ResourceVersionTooLarge
    return _BY_STATUS.get(status, errors.ServerUnavailable if status >= 500 else ApiError)


def _text(reply: Reply, answer: _Status, causes: tuple[_Cause, ...], *, is_secret: bool) -> str:
    content_type = reply.headers.get("Content-Type", "no content type")
    if is_secret:
        said = ", ".join(dict.fromkeys(cause.field for cause in causes))
    elif reply.status == HTTPStatus.UNPROCESSABLE_ENTITY and causes:
        # Not the message: it repeats the causes, for some kinds after the whole object.
        said = "; ".join(dict.fromkeys(f"{cause.field}: {cause.message}" for cause in causes))
    elif answer.message:
        said = answer.message
    elif content_type.startswith("text/plain"):
        said = reply.body.decode(errors="replace").strip()
    else:
        said = f"no Status in the answer ({content_type})"
    head = f"{reply.status} {answer.reason}".strip()
    return f"{head}: {said[:_MESSAGE_LIMIT]}" if said else head
