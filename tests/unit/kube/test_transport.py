from __future__ import annotations

import asyncio
import gc
import gzip
import json
import math
import re
import socket
import weakref
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from aiohttp import web
from prometheus_client import REGISTRY

from kaito.clock import SystemClock
from kaito.errors import InvalidSettings, TransportError
from kaito.kube.config import ClusterConfig
from kaito.kube.errors import error_for
from kaito.kube.requests import Request
from kaito.kube.tokens import Token
from kaito.kube.transport import IN_FLIGHT, Transport, _socket
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import Server, answer, caught, cut, ok, serving, status, until

GET = Request("GET", "/x")
POST = Request("POST", "/x", body=b"{}")
PUT = Request("PUT", "/x", body=b"{}", repeatable=True)
DELETE = Request("DELETE", "/x", repeatable=True)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    made = Transport(server.config, clock=FakeClock(), component="tests")
    yield made
    await made.close()


class Tokens:
    """A source that counts: t1, t2, …"""

    def __init__(self, max_age: float = math.inf) -> None:
        self.reads = 0
        self.max_age = max_age

    async def read(self) -> Token:
        self.reads += 1
        await asyncio.sleep(0)
        return Token(f"Bearer t{self.reads}", max_age=self.max_age)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_a_request_arrives_as_it_was_meant(server: Server, transport: Transport) -> None:
    """W24, W28"""
    server.answers = [ok({"a": 1})]
    query = (("labelSelector", "a in (b,c)"), ("limit", "5"))
    request = Request("PATCH", "/apis/a%20b", query, b"[]", "application/json-patch+json")
    reply = await transport.request(request)
    (seen,) = server.seen
    assert (reply.status, reply.body) == (200, b'{"a":1}')
    assert (seen.method, seen.path, seen.query, seen.body) == (
        *("PATCH", "/apis/a%20b", {"labelSelector": "a in (b,c)", "limit": "5"}),
        b"[]",
    )
    assert seen.headers["Content-Type"] == "application/json-patch+json"
    assert seen.headers["User-Agent"].startswith("kaito/")
    assert seen.headers["User-Agent"].endswith(" tests")
    assert "Authorization" not in seen.headers


async def test_errors_are_replies_and_their_bodies_are_cut(
    server: Server, transport: Transport
) -> None:
    """W8: 10 MB of HTML are not read."""
    server.answers = [answer(500, b"x" * 10_000_000)]
    reply = await transport.request(GET)
    assert (reply.status, len(reply.body)) == (500, 65_536)


async def test_redirects_are_not_followed(server: Server, transport: Transport) -> None:
    server.answers = [answer(302, "", Location="http://127.0.0.1:1/")]
    assert (await transport.request(GET)).status == 302


async def test_calls_share_connections(server: Server, transport: Transport) -> None:
    server.answers = [ok()]
    for _ in range(3):
        await transport.request(GET)
    assert len({seen.connection for seen in server.seen}) == 1


async def test_who_made_a_call_is_freed_at_once(server: Server, transport: Transport) -> None:
    """S17: the call leaves no circle of references behind, which only gc would find."""
    server.answers = [ok()]
    await transport.request(GET)
    gc.collect()
    gc.disable()
    try:
        caller = asyncio.get_running_loop().create_task(transport.request(PUT))
        await caller
        left = weakref.ref(caller)
        del caller
        await asyncio.sleep(0)  # the loop itself forgets it
        assert left() is None
    finally:
        gc.enable()


def test_sockets_send_at_once_and_notice_dead_peers() -> None:
    """W3"""
    address = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("", 0))
    with _socket(address) as sock:
        options = [
            sock.getsockopt(level, option)
            for level, option in (
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            )
        ]
    assert options == [1, 1, 30, 10, 3]


# Repeats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "calls"),
    [(GET, 2), (PUT, 2), (DELETE, 2), (POST, 1), (Request("PATCH", "/x", body=b"{}"), 1)],
    ids=str,
)
async def test_what_may_be_done_twice_is_sent_again_once(
    server: Server, transport: Transport, request_: Request, calls: int
) -> None:
    """W15"""
    server.answers = [cut()]
    with pytest.raises(TransportError):
        await transport.request(request_)
    assert len(server.seen) == calls


async def test_a_second_sending_may_succeed(server: Server, transport: Transport) -> None:
    """W15"""
    server.answers = [cut(), ok()]
    assert (await transport.request(PUT)).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_aiohttp_repeats_nothing_by_itself(
    server: Server, transport: Transport, method: str
) -> None:
    """W16: a kept connection that closes under an unconditional write."""
    server.answers = [ok(), cut(), ok()]
    await transport.request(GET)
    with pytest.raises(TransportError):
        await transport.request(Request(method, "/x"))
    assert len(server.seen) == 2


async def test_nothing_is_repeated_once_the_answer_has_begun(
    server: Server, transport: Transport
) -> None:
    """W15"""
    server.answers = [cut(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")]
    with pytest.raises(TransportError):
        await transport.request(GET)
    assert len(server.seen) == 1


async def test_retry_after_is_obeyed_without_holding_a_place(server: Server) -> None:
    """W14"""
    clock = FakeClock()
    transport = Transport(server.config, clock=clock, component="tests")
    server.answers = [answer(429, "", Retry_After="2"), answer(503, "", Retry_After="3"), ok()]
    async with asyncio.TaskGroup() as group:
        call = group.create_task(transport.request(POST))
        for seen, wait in ((1, 2), (2, 3)):
            await until(lambda seen=seen: len(server.seen) == seen and clock._timers)
            assert not transport._slots.locked()
            assert transport._slots._value == IN_FLIGHT
            await clock.advance(wait - 0.1)
            assert len(server.seen) == seen
            await clock.advance(0.1)
    assert call.result().status == 200
    await transport.close()


async def test_without_retry_after_the_answer_is_handed_on(
    server: Server, transport: Transport
) -> None:
    """W14"""
    server.answers = [answer(503, "")]
    assert (await transport.request(GET)).status == 503
    assert len(server.seen) == 1


async def test_an_advice_not_to_wait_is_not_obeyed(server: Server, transport: Transport) -> None:
    """W14: eleven sendings without a pause help no server."""
    server.answers = [answer(429, "", Retry_After="0")]
    assert (await transport.request(GET)).status == 429
    assert len(server.seen) == 1


async def test_a_wait_beyond_the_deadline_is_not_begun(
    server: Server, transport: Transport
) -> None:
    """W14"""
    server.answers = [answer(429, "", Retry_After="31")]
    assert (await transport.request(GET)).status == 429


async def test_the_eleventh_refusal_is_handed_on(server: Server, transport: Transport) -> None:
    """W14"""
    server.answers = [answer(429, "", Retry_After="1")]
    async with asyncio.TaskGroup() as group:
        call = group.create_task(transport.request(GET))
        while not call.done():
            await asyncio.sleep(0.001)
            await transport._clock.advance(1)  # type: ignore[attr-defined]
    assert call.result().status == 429
    assert len(server.seen) == 11


async def test_a_version_too_large_is_handed_on_at_once(
    server: Server, transport: Transport
) -> None:
    """R9"""
    causes = [{"reason": "ResourceVersionTooLarge"}]
    body = status(504, "Timeout", details={"causes": causes})
    server.answers = [answer(504, body, Retry_After="1")]
    assert (await transport.request(GET)).status == 504
    assert len(server.seen) == 1


# Credentials --------------------------------------------------------------------------------------


async def test_a_401_reloads_once_for_all_who_got_it(server: Server) -> None:
    """W20"""
    tokens = Tokens()

    async def check(request: web.Request) -> web.Response:
        return web.Response(status=401 if request.headers["Authorization"] == "Bearer t1" else 200)

    server.answers = [check]
    config = ClusterConfig(host=server.url, token=tokens)
    transport = Transport(config, clock=FakeClock(), component="tests")
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(transport.request(POST)) for _ in range(8)]
    assert [call.result().status for call in calls] == [200] * 8
    assert tokens.reads == 2
    await transport.close()


async def test_a_second_401_is_the_answer(server: Server) -> None:
    """W20"""
    server.answers = [answer(401, status(401, "Unauthorized"))]
    config = ClusterConfig(host=server.url, token=Tokens())
    transport = Transport(config, clock=FakeClock(), component="tests")
    assert (await transport.request(GET)).status == 401
    assert [seen.headers["Authorization"] for seen in server.seen] == ["Bearer t1", "Bearer t2"]
    await transport.close()


async def test_a_401_without_credentials_is_the_answer(
    server: Server, transport: Transport
) -> None:
    server.answers = [answer(401, "")]
    assert (await transport.request(GET)).status == 401
    assert len(server.seen) == 1


async def test_preparing_reads_the_credentials(server: Server) -> None:
    class Broken:
        async def read(self) -> Token:
            raise InvalidSettings("no file")

    config = ClusterConfig(host=server.url, token=Broken())
    transport = Transport(config, clock=FakeClock(), component="tests")
    with pytest.raises(InvalidSettings):
        await transport.prepare()
    await transport.close()


# Compression, time, warnings, metrics -------------------------------------------------------------


async def test_loopback_is_asked_for_plain_bodies(server: Server, transport: Transport) -> None:
    """W17"""
    server.answers = [ok()]
    await transport.request(GET)
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


async def test_other_servers_are_asked_for_gzip(server: Server) -> None:
    """W17"""
    server.answers = [ok()]
    # As a proxy's: the request goes to the loopback server, the name is another's.
    config = ClusterConfig(host="http://kubernetes.invalid", proxy=server.url)
    transport = Transport(config, clock=FakeClock(), component="tests")
    await transport.request(GET)
    await transport.request(POST)
    assert server.seen[0].headers["Host"] == "kubernetes.invalid"
    assert server.seen[0].headers["Accept-Encoding"] == "gzip"
    assert "Accept-Encoding" not in server.seen[1].headers
    await transport.close()


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_gzip_bodies_are_inflated(server: Server, transport: Transport, size: int) -> None:
    """W17"""
    body = json.dumps([n * 7919 for n in range(size // 10)]).encode()
    server.answers = [answer(200, gzip.compress(body, 1), Content_Encoding="gzip")]
    assert (await transport.request(GET)).body == body


class Pool(ThreadPoolExecutor):
    """The loop's own threads. Remembers what ``asyncio.to_thread`` gave them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.given: list[Any] = []

    def submit(self, function: Any, /, *args: Any, **named: Any) -> Any:
        self.given.append(function.args[0])
        return super().submit(function, *args, **named)


async def test_a_gzip_body_is_inflated_beside_the_loop(
    server: Server, transport: Transport
) -> None:
    """W17: in one of the loop's threads, so that the loop has its turns."""
    pool = Pool()
    asyncio.get_running_loop().set_default_executor(pool)
    packed = gzip.compress(b"x" * 5_000_000, 1)
    server.answers = [answer(200, packed, Content_Encoding="gzip")]
    assert (await transport.request(GET)).body == b"x" * 5_000_000
    assert pool.given == [zlib.decompress]


async def test_the_many_pieces_of_a_long_body_are_joined_beside_the_loop(
    server: Server, transport: Transport
) -> None:
    """W17, R34"""
    pool = Pool()
    asyncio.get_running_loop().set_default_executor(pool)
    body = b"x" * 50_000_000
    server.answers = [answer(200, body)]
    assert (await transport.request(GET)).body == body
    assert [work.__name__ for work in pool.given] == ["join"]


async def test_a_broken_gzip_body_is_a_transport_error(
    server: Server, transport: Transport
) -> None:
    server.answers = [answer(200, gzip.compress(b"x" * 100)[:-9], Content_Encoding="gzip")]
    with pytest.raises(TransportError):
        await transport.request(GET)


async def test_errors_may_be_gzip_or_broken_gzip(server: Server, transport: Transport) -> None:
    """W8"""
    server.answers = [
        answer(500, gzip.compress(b"no"), Content_Encoding="gzip"),
        answer(500, b"no gzip", Content_Encoding="gzip"),
    ]
    assert (await transport.request(GET)).body == b"no"
    assert (await transport.request(GET)).status == 500


async def test_the_date_of_answers_sets_the_clock(server: Server) -> None:
    """P11"""

    class Clock(SystemClock):
        dates: list[float] = []  # noqa: RUF012 - one test's

        def observe_server_date(self, epoch_seconds: float) -> None:
            self.dates.append(epoch_seconds)

    clock = Clock()
    server.answers = [ok(Date="Wed, 21 Oct 2026 07:28:00 GMT")]
    transport = Transport(server.config, clock=clock, component="tests")
    await transport.request(GET)
    assert clock.dates == [1_792_567_680.0]
    await transport.close()


async def test_each_warning_is_logged_once(server: Server, transport: Transport) -> None:
    """W27"""
    server.answers = [ok(Warning='299 - "unknown field \\"bogus\\""')]
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            await transport.request(POST)
    assert [line["event"] for line in logs] == ["api server warns"]
    assert "bogus" in logs[0]["text"]


async def test_no_credential_reaches_logs_errors_or_metrics(server: Server) -> None:
    """W27: of a request that failed, was refused, and was repeated."""
    config = ClusterConfig(host=server.url, token=Tokens())
    transport = Transport(config, clock=FakeClock(), component="tests")
    server.answers = [answer(401, ""), cut(), answer(403, "", Warning='299 - "w"')]
    with structlog.testing.capture_logs() as logs:
        error = await caught(transport.request(POST))
        refused = error_for(await transport.request(POST), what=str(POST))
    said = f"{error} {error!r} {error.__cause__!r} {refused!r} {logs} {Token('Bearer t1')!r}"
    host = server.url.removeprefix("http://")
    labels = {str(s.labels) for f in REGISTRY.collect() for s in f.samples}
    said += str([text for text in labels if host in text])
    assert host in said
    assert not re.search("Bearer|t1|t2", said)
    await transport.close()


async def test_requests_are_counted_with_and_without_an_answer(
    server: Server, transport: Transport
) -> None:
    """W28"""
    host = server.url.removeprefix("http://")
    server.answers = [answer(201, ""), cut()]
    await transport.request(POST)
    await caught(transport.request(POST))
    name = "rest_client_requests_total"
    assert metric(name, code="201", method="POST", host=host) == 1
    assert metric(name, code="<error>", method="POST", host=host) == 1
    seconds = "rest_client_request_duration_seconds_count"
    assert metric(seconds, verb="POST", host=host) == 2
    assert metric("rest_client_request_size_bytes_sum", verb="POST", host=host) == 2


async def test_the_labels_of_a_request_are_of_closed_sets(
    server: Server, transport: Transport
) -> None:
    """W28, M12: whatever is asked for, and however often."""
    host = server.url.removeprefix("http://")
    server.answers = [ok()]
    for number in range(5):
        await transport.request(Request("GET", f"/secret-{number}", (("limit", str(number)),)))
        await transport.request(Request("PATCH", f"/secret-{number}", body=b"{}"))
    found = {
        tuple(sorted(sample.labels.items()))
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "rest_client_requests_total" and sample.labels["host"] == host
    }
    assert found == {
        (("code", "200"), ("host", host), ("method", method)) for method in ("GET", "PATCH")
    }


async def test_repeats_are_counted(server: Server, transport: Transport) -> None:
    host = server.url.removeprefix("http://")
    server.answers = [cut(), ok()]
    await transport.request(GET)
    name = "rest_client_request_retries_total"
    assert metric(name, code="<error>", verb="GET", host=host) == 1
