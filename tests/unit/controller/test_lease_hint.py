"""E7: the watch by which a candidate hears of a release before its next try."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kaito.controller.candidacy import _shows_free
from tests.fakes.clock import FakeClock, settle
from tests.unit.controller.candidates import Candidate, held_by, running, spec
from tests.unit.controller.fakes import FakeApiServer


@pytest.fixture
def server() -> FakeApiServer:
    return FakeApiServer()


async def test_a_release_seen_by_the_watch_is_taken_at_once(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E7, E19: no time passes between the release and the takeover."""
    a = Candidate(server, clock, "a")
    b = Candidate(server, clock, "b", uniform=lambda: 1.0)
    async with running(a, b):
        await clock.advance(6.5)
        a.core.stop()
        await settle(60)
        assert not a.core.is_leader
        assert b.core.is_leader
    assert spec(server)["holderIdentity"] == "b"


async def test_a_watch_that_crashes_does_not_end_the_election(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E7: it is a hint only; 15 s later it is tried again."""
    opened = 0

    @asynccontextmanager
    async def crash(*_: Any, **__: Any) -> AsyncIterator[Any]:
        nonlocal opened
        opened += 1
        raise ValueError("a line that is no line")
        yield

    held_by(server, "other")
    a = Candidate(server, clock)
    a.client.watch = crash  # type: ignore[method-assign]
    async with running(a):
        assert opened == 1
        await clock.advance(15)
        assert opened == 2
        await clock.advance(1)
        assert a.core.is_leader


@pytest.mark.parametrize(
    ("line", "is_free"),
    [
        (b'{"type":"MODIFIED","object":{"spec":{"holderIdentity":""}}}', True),
        (b'{"type":"ADDED","object":{}}', True),
        (b'{"type":"DELETED","object":{"spec":{"holderIdentity":"b"}}}', True),
        (b'{"type":"MODIFIED","object":{"spec":{"holderIdentity":"b"}}}', False),
        (b'{"type":"ERROR","object":{"kind":"Status","code":410}}', False),
        (b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}', False),
        (b'{"type":"MODIFIED"}', False),
        (b"[]", False),
        (b"{", False),
    ],
)
def test_only_a_lease_that_nobody_holds_wakes_a_candidate(line: bytes, is_free: bool) -> None:
    """E7"""
    assert _shows_free(line) is is_free


async def test_without_a_watch_a_release_is_found_by_polling(
    server: FakeApiServer, clock: FakeClock
) -> None:
    """E7: up to 4.4 s."""
    a = Candidate(server, clock, "a")
    b = Candidate(server, clock, "b", uniform=lambda: 1.0, watching=False)
    async with running(a, b):
        a.core.stop()
        await clock.advance(4.4)
        assert b.core.is_leader
