"""The API server's door to the error tree: status, reason, details and causes in, a type out.

Text is never matched: the same words come from proxies, other versions and webhooks.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Final, Literal

import msgspec

from kaito import errors
from kaito.errors import ApiError, Cause
from kaito.kube.replies import Reply

BODY_LIMIT: Final = 65_536
"""Bytes of an error's body that are read; a proxy may send megabytes of HTML."""

_MESSAGE_LIMIT: Final = 1_000
_OWNED: Final = "FieldManagerConflict"
_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    **dict.fromkeys((400, 405, 406, 413, 415, 422), errors.InvalidRequest),
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
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
    causes: tuple[_Cause, ...] = ()


class _Status(msgspec.Struct, frozen=True):
    kind: Literal["Status"]
    reason: str = ""
    message: str = ""
    details: _Details = _Details()


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
    causes = tuple(dict.fromkeys(answer.details.causes))
    is_secret = resource == "secrets"  # what is said about its values quotes them
    return _type(reply.status, answer, resource=resource, is_json_patch=is_json_patch)(
        f"{what}: {_text(reply, answer, causes, is_secret=is_secret)}",
        status=reply.status,
        causes=[
            Cause(c.field, c.reason, "" if is_secret and c.reason != _OWNED else c.message)
            for c in causes
        ],
        retry_after=retry_after(reply),
    )


def owners(conflict: errors.ApplyConflict) -> tuple[tuple[str, str], ...]:
    """(manager, field path) of each field that another has. Only the text names the manager."""
    return tuple((cause.message.split('"')[1], cause.field) for cause in conflict.causes)


def retry_after(reply: Reply) -> float | None:
    """Seconds the server asks to wait, of a 429 or 5xx; None when it does not say.

    Zero, or a date that has passed, says nothing: obeyed, it would be a loop without a pause. Nor
    does a list at a version the server has not reached: the informer asks at once, with another
    (facts R9).
    """
    if reply.status != 429 and reply.status < 500:
        return None
    text = reply.headers.get("Retry-After", "").strip()
    if not text or _type(reply.status, _parse(reply)) is errors.ResourceVersionTooLarge:
        return None
    if text.isascii() and text.isdigit():
        return float(text) or None
    until, now = parse_date(text), parse_date(reply.headers.get("Date", ""))
    return until - now if until is not None and now is not None and until > now else None


def parse_date(text: str) -> float | None:
    """An HTTP date as seconds since the epoch; None for anything else."""
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None


def _parse(reply: Reply) -> _Status:
    try:
        return _decoder.decode(reply.body)
    except msgspec.DecodeError:  # text, HTML, empty, cut, or another kind
        return _Status("Status")


def _type(
    status: int, answer: _Status, *, resource: str = "", is_json_patch: bool = False
) -> type[ApiError]:
    details, causes = answer.details, answer.details.causes
    reasons = {cause.reason for cause in causes}
    match status:
        case 403 if "NamespaceTerminating" in reasons:
            return errors.NamespaceTerminating
        case 404 if not details.name:
            return errors.KindNotServed
        case 404 if details.kind == "namespaces" != resource:
            return errors.NamespaceMissing
        case 409 if answer.reason == "AlreadyExists":
            return errors.AlreadyExists
        case 409 if _OWNED in reasons:
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
    elif reply.status == 422 and causes:
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
