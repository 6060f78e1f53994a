"""The error tree. An error says why (``reason``) and what to do next (``retry``).

Errors enter the tree at two doors, by code and never by text: ``kube/errors.py`` (the API server)
and each backend's ``errors.py`` (a cloud). Only ``controller/worker.py`` turns a retry into a wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Backoff:
    """Try again on the queue's exponential schedule, ``at_least`` seconds from now."""

    at_least: float = 0.0


@dataclass(frozen=True, slots=True)
class After:
    """Try again after a known wait, in seconds (a server's Retry-After, a capacity cool-down)."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Never:
    """Trying again cannot help until something else changes."""


Retry = Backoff | After | Never


class KaitoError(Exception):
    """Base of every error raised on purpose. ``reason`` is CamelCase and fit for a condition."""

    reason: str = "InternalError"
    retry: Retry = Backoff()


RETRY_AFTER_LIMIT: Final = 300.0
"""Seconds a server's Retry-After counts for at most."""


class InvalidSettings(KaitoError):
    """A flag or environment variable is wrong; the message names it. Ends the process with 2."""

    reason = "InvalidSettings"
    retry = Never()


@dataclass(frozen=True, slots=True)
class Cause:
    """One entry of ``Status.details.causes``, as the API server sends it."""

    field: str
    reason: str
    message: str


class ApiError(KaitoError):
    """An answer of the API server that is not a success.

    ``status``: HTTP status, 0 without an answer. ``retry_after``: seconds the server asks for; 0
    is no advice. ``may_be_done``: a write may have been carried out nevertheless.
    """

    reason = "ApiError"
    may_be_done: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        causes: Sequence[Cause] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.causes = tuple(causes)
        if retry_after:
            self.retry = After(min(retry_after, RETRY_AFTER_LIMIT))


class TransportError(ApiError):
    """No answer, or not all of it: refused, reset, cut, timed out."""

    reason = "TransportError"
    may_be_done = True


class LineTooLong(TransportError):
    """A line of a watch is longer than any object can be; the message names the path and size."""

    reason = "LineTooLong"


class InvalidRequest(ApiError):
    """400, 405, 406, 413, 415 or 422: it will be refused again as it is. Causes name fields."""

    reason = "InvalidRequest"
    retry: Retry = Never()


class PatchTestFailed(InvalidRequest):
    """A JSON Patch ``test`` or path did not hold: the object changed. Look again."""

    reason = "PatchTestFailed"
    retry = Backoff()


class Unauthorized(ApiError):
    """401 after the credentials were read again."""

    reason = "Unauthorized"


class Forbidden(ApiError):
    """403: the right is missing now; it may be granted later, so it is tried again from 1 s up."""

    reason = "Forbidden"
    retry = Backoff(at_least=1.0)


class NamespaceTerminating(ApiError):
    """403 on create: the namespace is going away, nothing can be made in it."""

    reason = "NamespaceTerminating"
    retry = Never()


class NotFound(ApiError):
    """404 for one object: it is not there."""

    reason = "NotFound"
    retry = Never()


class KindNotServed(ApiError):
    """404 for a kind: its CRD is missing. Says nothing about objects."""

    reason = "KindNotServed"
    retry = After(10.0)


class NamespaceMissing(ApiError):
    """404 on create: the namespace does not exist."""

    reason = "NamespaceMissing"


class AlreadyExists(ApiError):
    """409 on create: the name is in use. An answer, not a failure; a live read tells by whom."""

    reason = "AlreadyExists"
    may_be_done = True


class Conflict(ApiError):
    """409: the resourceVersion or uid sent is not the object's any more. Look again."""

    reason = "Conflict"


class ApplyConflict(ApiError):
    """409 on apply without force: other managers own fields. Each cause is one field."""

    reason = "ApplyConflict"


class Expired(ApiError):
    """410: this resourceVersion or continue token is too old. List again."""

    reason = "Expired"


class ResourceVersionTooLarge(ApiError):
    """504 with that cause: the server has not reached this resourceVersion. List with none."""

    reason = "ResourceVersionTooLarge"


class TooManyRequests(ApiError):
    """429: priority and fairness refused it. ``retry_after`` says when, if the server did."""

    reason = "TooManyRequests"


class ServerUnavailable(ApiError):
    """5xx: the server's trouble, tried again."""

    reason = "ServerUnavailable"
    may_be_done = True


class NotLeader(KaitoError):
    """A write was asked for while this process may not be the leader. Nothing was sent."""

    reason = "NotLeader"


class LeadershipLost(KaitoError):
    """The Lease could not be renewed in time. Ends the process with 1."""

    reason = "LeadershipLost"
    retry = Never()


class SyncTimeout(KaitoError):
    """Caches did not sync in time; the message names each kind and its last error."""

    reason = "SyncTimeout"
    retry = Never()


class StopTimeout(KaitoError):
    """Something outlived the grace period and was cancelled; the message names it."""

    reason = "StopTimeout"
    retry = Never()


class NameTaken(KaitoError):
    """An object or agent pool that is not ours has the name we need. It is never changed."""

    reason = "NameTaken"
    retry = After(60.0)


ANSWER_LOST: Final = "CloudUnavailable"
"""Reason of a CloudError that leaves open whether the call was carried out."""


class CloudError(KaitoError):
    """A cloud's refusal, classified by code at the backend's door (facts P6.2).

    ``reason`` and ``retry`` are the row's; ``remedy`` is a sentence for the user; ``code`` is the
    cloud's own word; ``terminal``: no wait helps, the request itself must change. ``waits``:
    seconds after the first, second, … refusal of this kind in a row, the last for all later ones.
    """

    reason = "CloudError"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        retry: Retry,
        remedy: str = "",
        code: str = "",
        terminal: bool = False,
        waits: tuple[float, ...] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry = retry
        self.remedy = remedy
        self.code = code
        self.terminal = terminal
        self.waits = waits

    @property
    def may_be_done(self) -> bool:
        """The call may have been carried out nevertheless: the next list tells."""
        return self.reason == ANSWER_LOST


class InvalidPreset(KaitoError):
    """A preset file is wrong; the message names file and field."""

    reason = "InvalidPreset"
    retry = Never()
