"""What ARM says back: a status, headers and a body, and the two shapes of its errors (P5.10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

JSON: Final = "application/json; charset=utf-8"
HTML: Final = "text/html"

_FRONT_DOOR: Final = frozenset(
    code.lower()
    for code in (
        *("AuthenticationFailed", "ExpiredAuthenticationToken", "InvalidAuthenticationToken"),
        *("AuthorizationFailed", "LinkedAuthorizationFailed", "RequestDisallowedByPolicy"),
        *("ScopeLocked", "ReadOnlyDisabledSubscription", "MissingSubscriptionRegistration"),
        *("NoRegisteredProviderFound", "MissingRegistrationForLocation", "ReservedResourceName"),
        *("ResourceNotFound", "ResourceGroupNotFound", "SubscriptionNotFound"),
        *("ParentResourceNotFound", "InvalidResourceType", "HttpMethodNotAllowed"),
        *("MissingApiVersionParameter", "InvalidApiVersionParameter", "InvalidRequestContent"),
        *("TooManyRequests", "TooManyRequestsReceived", "SubscriptionRequestsThrottled"),
    )
)
"""Codes of Resource Manager itself. Every other is said by the container service behind it."""

_USUAL_CODE: Final[Mapping[int, str]] = {
    400: "BadRequest",
    401: "AuthenticationFailed",
    403: "AuthorizationFailed",
    404: "NotFound",
    409: "OperationNotAllowed",
    412: "PreconditionFailed",
    429: "TooManyRequests",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, before the headers that every answer has."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cut:
    """No answer: the connection is closed in the client's face."""


Reply = Answer | Cut


class Refused(Exception):
    """The cloud says no. ``details``: further errors, each with ``code`` and ``message``."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        target: str = "",
        details: tuple[Mapping[str, Any], ...] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.target = target
        self.details = details
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = whole_seconds(retry_after)

    def answer(self) -> Answer:
        """In the shape of whoever says it: wrapped by the front door, bare from AKS."""
        inner: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.code.lower() in _FRONT_DOOR:
            if self.target:
                inner["target"] = self.target
            if self.details:
                inner["details"] = list(self.details)
            return json_answer(self.status, {"error": inner}, self.headers)
        inner |= {"details": list(self.details) or None, "subcode": ""}
        if self.target:
            inner["target"] = self.target
        return json_answer(self.status, inner, self.headers)


def json_answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with a JSON body."""
    return Answer(status, msgspec.json.encode(body), JSON, headers or {})


def scripted_fault(
    status: int, code: str | None, message: str | None, retry_after: float | None
) -> Answer:
    """The answer that a script's rule orders; see ``script.Rule`` for what is left out."""
    headers = {} if retry_after is None else {"Retry-After": whole_seconds(retry_after)}
    if code is None and status < 400:
        return Answer(status, (message or "").encode(), JSON, headers)
    if code is None and status >= 500:
        return Answer(status, (message or "").encode(), HTML, headers)
    code = code or _USUAL_CODE.get(status, "BadRequest")
    text = message or f"The sandbox's script orders {code}."
    return Refused(status, code, text, headers=headers).answer()


def whole_seconds(seconds: float) -> str:
    """The form of ``Retry-After``: whole seconds, rounded up."""
    return str(-int(-seconds // 1))
