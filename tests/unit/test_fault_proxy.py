"""The fault proxy does to a reply what its plan says, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.fakes.fault_plan import (
    Call,
    Cut,
    Delay,
    Duplicate,
    ErrorLine,
    Fault,
    LostReply,
    Refuse,
    Script,
    Seeded,
    Silence,
    Trickle,
    Unsent,
)
from tests.fakes.fault_proxy import FaultProxy, fault_proxy
from tests.unit.kube.server import Server, answer, chunks, serving

LINES = [b'{"n":%d}\n' % number for number in range(4)]
MARKER = b'{"type":"BOOKMARK","metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}\n'
WATCH = "/things?watch=1"
STREAM = "/things?watch=1&sendInitialEvents=true"


@asynccontextmanager
async def between(
    *faults: Fault, verb: str = "WATCH"
) -> AsyncIterator[tuple[FaultProxy, Server, aiohttp.ClientSession]]:
    """A server, a proxy before it with these faults for the next calls, a client of the proxy."""
    script = Script()
    for fault in faults:
        script.add(fault, verb)
    async with serving() as server, fault_proxy(server.config, script) as proxy:
        server.answers = [answer(200, {"there": "yes"})]
        async with aiohttp.ClientSession(proxy.url) as client:
            yield proxy, server, client


async def read_until_it_breaks(response: aiohttp.ClientResponse) -> bytes:
    """What comes before the connection breaks."""
    data = b""
    try:
        while piece := await response.content.readany():
            data += piece
    except aiohttp.ClientError:
        return data
    raise AssertionError(f"ended properly after {data!r}")


async def test_what_no_fault_touches_passes_unchanged() -> None:
    async with between() as (proxy, server, client):
        body = json.dumps({"text": "x" * 200_000})
        server.answers = [answer(201, body, Content_Type="application/json", Warning='299 - "w"')]
        sent = b"y" * 100_000
        for _ in range(3):
            async with client.post("/a%20b/c?d=e%2Cf", data=sent, headers={"X-It": "1"}) as reply:
                assert (reply.status, await reply.text()) == (201, body)
                assert reply.headers["Warning"] == '299 - "w"'
        seen = server.seen[-1]
        assert (seen.method, seen.path, seen.query) == ("POST", "/a%20b/c", {"d": "e,f"})
        assert (seen.body, seen.headers["X-It"]) == (sent, "1")
        assert len({s.connection for s in server.seen}) == 1
        assert [str(e) for e in proxy.trace] == [
            f"POST /a%20b/c?d=e,f ({number}) -> 201" for number in (1, 2, 3)
        ]


async def test_a_watch_passes_line_by_line() -> None:
    async with between() as (proxy, server, client):
        server.answers = [chunks(b"".join(LINES[:2]) + LINES[2][:3], LINES[2][3:], then_hang=True)]
        async with client.get(WATCH) as reply:
            assert [await reply.content.readline() for _ in range(3)] == LINES[:3]
        assert proxy.trace[0].lines == 3


async def test_a_client_that_leaves_a_watch_ends_it_upstream() -> None:
    async with between() as (_, server, client):
        ended = asyncio.Event()

        async def hold(request: Any) -> Any:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        server.answers = [hold]
        with contextlib.suppress(TimeoutError):
            await client.get(WATCH, timeout=aiohttp.ClientTimeout(total=0.05))
        async with asyncio.timeout(5):
            await ended.wait()


@pytest.mark.parametrize(("fault", "arrived"), [(Unsent(), 0), (LostReply(), 1)])
async def test_a_break_before_the_reply_with_or_without_effect(fault: Fault, arrived: int) -> None:
    async with between(fault, verb="POST") as (proxy, server, client):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.post("/things", data=b"{}")
        assert len(server.seen) == arrived
        async with client.post("/things", data=b"{}") as reply:
            assert reply.status == 200
        assert [e.status for e in proxy.trace] == [0, 200]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_body_is_cut_in_the_middle(how: str) -> None:
    async with between(Cut(6, how), verb="GET") as (_, server, client):
        server.answers = [answer(200, "0123456789")]
        async with client.get("/things") as reply:
            assert await read_until_it_breaks(reply) == b"01234567"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_watch_is_cut_inside_a_line(how: str) -> None:
    async with between(Cut(2, how)) as (_, server, client):
        server.answers = [chunks(*LINES, then_hang=True)]
        async with client.get(WATCH) as reply:
            assert await read_until_it_breaks(reply) == b"".join(LINES[:2]) + b'{"n"'


async def test_a_watch_may_end_properly_inside_a_line() -> None:
    async with between(Cut(1, "end")) as (_, server, client):
        server.answers = [chunks(*LINES, then_hang=True), answer(200, "next")]
        async with client.get(WATCH) as reply:
            assert await reply.read() == LINES[0] + b'{"n"'
        async with client.get("/things") as reply:
            assert await reply.text() == "next"


async def test_faults_count_from_where_a_streamed_list_ends() -> None:
    async with between(Cut(1, "end"), Cut(1, "end", initial=True)) as (_, server, client):
        server.answers = [chunks(*LINES[:2], MARKER, *LINES[2:], then_hang=True)]
        async with client.get(STREAM) as reply:
            assert await reply.read() == b"".join([*LINES[:2], MARKER, LINES[2], b'{"n"'])
        async with client.get(STREAM) as reply:
            assert await reply.read() == LINES[0] + b'{"n"'


async def test_an_error_line_ends_a_watch_without_waiting_for_the_server() -> None:
    async with between(ErrorLine(1, 410)) as (_, server, client):
        server.answers = [chunks(LINES[0], then_hang=True)]
        async with client.get(WATCH) as reply:
            first, second = (await reply.read()).splitlines(keepends=True)
        assert first == LINES[0]
        event = json.loads(second)
        assert (event["type"], event["object"]["kind"]) == ("ERROR", "Status")
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


async def test_silence_brings_neither_bytes_nor_an_end() -> None:
    async with between(Silence(1)) as (_, server, client):
        server.answers = [chunks(*LINES), answer(200, "another")]
        async with client.get(WATCH) as reply:
            assert await reply.content.readline() == LINES[0]
            async with client.get("/things") as other:
                assert await other.text() == "another"
            assert not reply.content.is_eof()
            assert reply.content.total_bytes == len(LINES[0])


async def test_delayed_lines_keep_their_order_and_others_overtake_them() -> None:
    async with between(Delay(0.2)) as (_, server, client):
        server.answers = [chunks(*LINES)]
        async with client.get(WATCH) as late, client.get("/others?watch=1") as prompt:
            assert await prompt.read() == b"".join(LINES)
            assert late.content.total_bytes == 0
            assert await late.read() == b"".join(LINES)


async def test_lines_come_twice() -> None:
    async with between(Duplicate(2)) as (_, server, client):
        server.answers = [chunks(*LINES)]
        async with client.get(WATCH) as reply:
            got = (await reply.read()).splitlines(keepends=True)
    assert got == [LINES[0], LINES[0], LINES[1], LINES[2], LINES[2], LINES[3]]


@pytest.mark.parametrize("target", ["/things", WATCH])
async def test_a_trickle_is_one_byte_at_a_time(target: str) -> None:
    async with between(Trickle(12)) as (proxy, server, client):
        proxy.plan.add(Trickle(12), "GET")  # type: ignore[attr-defined]
        server.answers = [chunks(*LINES)]
        async with client.get(target) as reply:
            pieces = [piece async for piece, _ in reply.content.iter_chunks()]
        assert b"".join(pieces) == b"".join(LINES)
        assert [len(piece) for piece in pieces[:12]] == [1] * 12
        assert len(pieces) < 20


@pytest.mark.parametrize(
    ("fault", "retry_after", "kind"),
    [
        (Refuse(410), None, "application/json"),
        (Refuse(429, 3), "3", "text/plain"),
        (Refuse(429), None, "text/plain"),
        (Refuse(503), None, "text/html"),
    ],
)
async def test_a_refusal_is_the_proxys_own(
    fault: Refuse, retry_after: str | None, kind: str
) -> None:
    async with between(fault, verb="GET") as (_, server, client):
        async with client.get("/things") as reply:
            assert (reply.status, reply.content_type) == (fault.status, kind)
            assert reply.headers.get("Retry-After") == retry_after
            assert await reply.read()
        assert not server.seen


async def test_a_server_that_is_gone_shows_as_a_broken_connection() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serving() as server:
            proxy = await stack.enter_async_context(fault_proxy(server.config))
        client = await stack.enter_async_context(aiohttp.ClientSession(proxy.url))
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.get("/things")


async def test_a_reply_cut_by_the_server_is_cut_for_the_client() -> None:
    async with between() as (_, server, client):
        server.answers = [chunks(LINES[0], then_cut=True)]
        async with client.get(WATCH) as reply:
            with pytest.raises(aiohttp.ClientPayloadError):
                await reply.read()


def test_a_seed_gives_each_call_its_fate_whatever_came_between() -> None:
    calls = [
        Call(verb, path, {}, number)
        for number in range(1, 50)
        for verb in ("WATCH", "GET", "PATCH")
        for path in ("/a", "/b")
    ]
    plan = Seeded(7)
    fates = {str(call): plan.decide(call) for call in calls}
    again = {str(call): plan.decide(call) for call in reversed(calls)}
    other = {str(call): Seeded(8).decide(call) for call in calls}
    assert fates == again
    assert fates != other
    kinds = {type(fate) for fate in fates.values()}
    assert kinds == {type(None), *Fault.__args__}


def test_a_script_is_carried_out_in_its_order_by_the_calls_it_names() -> None:
    script = Script()
    script.add(Unsent(), "GET", path="/a", times=2)
    script.add(LostReply(), "GET")

    def decide(verb: str, path: str) -> Fault | None:
        return script.decide(Call(verb, path, {}, 1))

    assert decide("POST", "/a") is None
    assert decide("GET", "/b") == LostReply()
    assert [decide("GET", "/a") for _ in range(3)] == [Unsent(), Unsent(), None]


async def test_the_story_names_calls_and_faults() -> None:
    async with between(Duplicate()) as (proxy, server, client):
        async with client.get("/things") as reply:
            await reply.read()
        server.answers = [chunks(LINES[0])]
        async with client.get(WATCH) as reply:
            await reply.read()
        assert proxy.story() == "WATCH /things (1) -> 200, 1 lines; Duplicate(every=1)"
