from __future__ import annotations

import json
from typing import Any

import pytest

from kaito import errors
from kaito.errors import After, ApiError, Backoff, Never, Retry
from kaito.kube.errors import error_for, owners, parse_date, retry_after
from kaito.kube.replies import Reply
from tests.unit.kube.server import status


def reply(code: int, body: Any = b"", **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(code, named, raw)


def cause(reason: str, field: str = "", message: str = "") -> dict[str, str]:
    return {"reason": reason, "field": field, "message": message}


NAMED = {"name": "l", "kind": "leases", "group": "coordination.k8s.io"}
CASES: list[tuple[Reply, type[ApiError], Retry]] = [
    (reply(400, status(400, "BadRequest")), errors.InvalidRequest, Never()),
    (reply(401, status(401, "Unauthorized")), errors.Unauthorized, Backoff()),
    (reply(403, status(403, "Forbidden", details=NAMED)), errors.Forbidden, Backoff(at_least=1.0)),
    (
        reply(403, status(403, details={**NAMED, "causes": [cause("NamespaceTerminating")]})),
        errors.NamespaceTerminating,
        Never(),
    ),
    (reply(404, b"404 page not found\n"), errors.KindNotServed, After(10.0)),
    (reply(404, status(404, "NotFound", details={})), errors.KindNotServed, After(10.0)),
    (reply(404, status(404, "NotFound", details=NAMED)), errors.NotFound, Never()),
    (
        reply(404, status(404, "NotFound", details={"name": "x", "kind": "namespaces"})),
        errors.NamespaceMissing,
        Backoff(),
    ),
    (reply(405), errors.InvalidRequest, Never()),
    (reply(406, status(406, "NotAcceptable")), errors.InvalidRequest, Never()),
    (reply(409, status(409, "Conflict", details=NAMED)), errors.Conflict, Backoff()),
    (reply(409, status(409)), errors.Conflict, Backoff()),
    (reply(409, status(409, "AlreadyExists")), errors.AlreadyExists, Backoff()),
    (
        reply(409, status(409, "Conflict", details={"causes": [cause("FieldManagerConflict")]})),
        errors.ApplyConflict,
        Backoff(),
    ),
    (reply(410, status(410, "Expired")), errors.Expired, Backoff()),
    (reply(413, b"too large"), errors.InvalidRequest, Never()),
    (reply(415), errors.InvalidRequest, Never()),
    (reply(422, status(422, "Invalid", details={})), errors.InvalidRequest, Never()),
    (
        reply(422, status(422, "Invalid", details={"causes": [cause("", "metadata.uid")] * 2})),
        errors.Conflict,
        Backoff(),
    ),
    (reply(429, b"Too many requests"), errors.TooManyRequests, Backoff()),
    (reply(429, b"", Retry_After="3"), errors.TooManyRequests, After(3.0)),
    (reply(500), errors.ServerUnavailable, Backoff()),
    (reply(502, b"<html>"), errors.ServerUnavailable, Backoff()),
    (reply(503, b"", Retry_After="0"), errors.ServerUnavailable, Backoff()),
    (reply(503, b"", Retry_After="86400"), errors.ServerUnavailable, After(300.0)),
    (reply(504, status(504, "Timeout")), errors.ServerUnavailable, Backoff()),
    (
        reply(504, status(504, "Timeout", details={"causes": [cause("ResourceVersionTooLarge")]})),
        errors.ResourceVersionTooLarge,
        Backoff(),
    ),
    (reply(302), ApiError, Backoff()),
    (reply(418), ApiError, Backoff()),
]


@pytest.mark.parametrize(("answer", "type_", "retry"), CASES)
def test_an_answer_becomes_an_error_by_status_reason_and_causes(
    answer: Reply, type_: type[ApiError], retry: Retry
) -> None:
    """W8, W9, W10, W11, W12"""
    error = error_for(answer, what="GET /x", resource="leases")
    assert type(error) is type_
    assert error.retry == retry
    assert error.status == answer.status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502</body></html>",
        b'{"kind":"Status","reason":"Conf',
        b'{"kind":"Other","reason":"AlreadyExists"}',
        b'{"kind":"Status","details":[]}',
        b"null",
        b"\xff\xfe",
        b"x" * 65_536,
    ],
)
def test_every_body_gives_a_typed_error_with_a_short_message(body: bytes) -> None:
    """W8"""
    error = error_for(reply(409, body, Content_Type="text/plain"), what="PUT /x")
    assert type(error) is errors.Conflict
    assert len(str(error)) < 1_100


def test_the_text_of_a_message_never_decides() -> None:
    """W8"""
    body = status(409, "Conflict", message='leases "l" already exists', details=NAMED)
    assert type(error_for(reply(409, body), what="POST /x")) is errors.Conflict


def test_a_missing_namespace_object_is_only_not_found() -> None:
    """W10"""
    body = status(404, "NotFound", details={"name": "x", "kind": "namespaces"})
    error = error_for(reply(404, body), what="GET /x", resource="namespaces")
    assert type(error) is errors.NotFound


def test_a_json_patch_that_did_not_hold_is_told_from_an_invalid_one() -> None:
    """W12"""
    failed = reply(422, status(422, "Invalid", details={}))
    invalid = reply(
        422, status(422, "Invalid", details={**NAMED, "causes": [cause("Invalid", "spec")]})
    )
    what = "PATCH /x"
    assert type(error_for(failed, what=what, is_json_patch=True)) is errors.PatchTestFailed
    assert type(error_for(invalid, what=what, is_json_patch=True)) is errors.InvalidRequest


def test_all_causes_are_shown_and_repeated_ones_once() -> None:
    """W13"""
    one, two = cause("Invalid", "spec.a", "must be 1"), cause("Invalid", "spec.b", "must be 2")
    body = status(422, "Invalid", message="the whole object", details={"causes": [one, two, one]})
    error = error_for(reply(422, body), what="PUT /x")
    assert str(error) == "PUT /x: 422 Invalid: spec.a: must be 1; spec.b: must be 2"
    assert [(c.field, c.message) for c in error.causes] == [
        ("spec.a", "must be 1"),
        ("spec.b", "must be 2"),
    ]


def test_a_conflict_of_managers_names_the_fields() -> None:
    """W12"""
    body = status(
        409,
        "Conflict",
        details={
            "causes": [
                cause("FieldManagerConflict", ".data.x", 'conflict with "a"'),
                cause("FieldManagerConflict", ".data.y", 'conflict with "a"'),
            ]
        },
    )
    error = error_for(reply(409, body), what="PATCH /x")
    assert [c.field for c in error.causes] == [".data.x", ".data.y"]


@pytest.mark.parametrize("resource", ["deployments", "secrets"])
def test_a_conflict_of_managers_lists_manager_and_field(resource: str) -> None:
    """W12, A8: who has which field is no secret."""
    said = ('conflict with "kubectl" using apps/v1', 'conflict with "x" with subresource "status"')
    causes = [cause("FieldManagerConflict", f".f{n}", text) for n, text in enumerate(said)]
    body = status(409, "Conflict", details={"causes": causes})
    error = error_for(reply(409, body), what="PATCH /x", resource=resource)
    assert isinstance(error, errors.ApplyConflict)
    assert owners(error) == (("kubectl", ".f0"), ("x", ".f1"))


def test_what_is_said_of_a_secret_is_not_repeated() -> None:
    """W27"""
    said = [cause("Invalid", "data.password", 'Invalid value: "hunter2"')]
    body = status(422, "Invalid", message="hunter2", details={"causes": said})
    error = error_for(reply(422, body), what="PUT /x", resource="secrets")
    assert "hunter2" not in f"{error} {error.causes}"
    assert "data.password" in str(error)


@pytest.mark.parametrize(
    ("code", "text", "seconds"),
    [
        (429, "2", 2.0),
        (503, " 7 ", 7.0),
        (503, "Wed, 21 Oct 2026 07:28:10 GMT", 10.0),
        (503, "Wed, 21 Oct 2026 07:27:00 GMT", None),
        (429, "0", None),
        (503, "soon", None),
        (503, "-1", None),
        (503, "", None),
        (409, "2", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_by_the_servers_clock(
    code: int, text: str, seconds: float | None
) -> None:
    """W14: but no advice to try again at once, which would be a loop without a pause."""
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    assert retry_after(reply(code, b"", Retry_After=text, Date=date)) == seconds


def test_a_version_too_large_is_not_waited_for() -> None:
    """R9"""
    body = status(504, "Timeout", details={"causes": [cause("ResourceVersionTooLarge")]})
    assert retry_after(reply(504, body, Retry_After="1")) is None
    assert retry_after(reply(504, status(504, "Timeout"), Retry_After="1")) == 1.0


def test_dates_are_read_and_anything_else_is_none() -> None:
    assert parse_date("Wed, 21 Oct 2026 07:28:00 GMT") == 1_792_567_680.0
    assert parse_date("yesterday") is None
    assert parse_date("") is None
