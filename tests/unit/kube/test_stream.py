from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kaito.errors import (
    After,
    Forbidden,
    KindNotServed,
    LineTooLong,
    ServerUnavailable,
    TooManyRequests,
    TransportError,
    Unauthorized,
)
from kaito.kube.config import ClusterConfig
from kaito.kube.requests import Request
from kaito.kube.transport import Transport
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import Server, answer, chunks, cut, ok, serving, status
from tests.unit.kube.test_transport import GET, Tokens, metric

WATCH = Request("GET", "/api/v1/pods", (("watch", "1"),))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    made = Transport(server.config, clock=FakeClock(), component="tests")
    yield made
    await made.close()


async def read(transport: Transport, *, sock_read: float = 5.0) -> list[bytes]:
    async with transport.stream(WATCH, sock_read=sock_read) as lines:
        return [line async for line in lines]


async def test_lines_come_whole_and_the_stream_ends_with_the_server(
    server: Server, transport: Transport
) -> None:
    """W4, R16"""
    server.answers = [chunks(b'{"a":1}\n{"b"', b":2", b"}\n")]
    assert await read(transport) == [b'{"a":1}', b'{"b":2}']
    assert server.seen[0].query == {"watch": "1"}
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


async def test_a_fragment_before_a_clean_end_is_dropped(
    server: Server, transport: Transport
) -> None:
    """W6"""
    server.answers = [chunks(b'{"a":1}\n{"b":2')]
    assert await read(transport) == [b'{"a":1}']


async def test_a_cut_is_a_transport_error_after_the_lines_before_it(
    server: Server, transport: Transport
) -> None:
    """W6, R21"""
    server.answers = [chunks(b'{"a":1}\n{"b":2', then_cut=True)]
    async with transport.stream(WATCH, sock_read=5.0) as lines:
        assert await anext(lines) == b'{"a":1}'
        with pytest.raises(TransportError):
            await anext(lines)


async def test_silence_is_a_transport_error(server: Server, transport: Transport) -> None:
    """W2, P12: SocketTimeoutError is three kinds of error at once."""
    server.answers = [chunks(b'{"a":1}\n', then_hang=True)]
    with pytest.raises(TransportError):
        await read(transport, sock_read=0.05)


async def test_a_stream_that_cannot_start_is_a_transport_error(
    server: Server, transport: Transport
) -> None:
    server.answers = [cut()]
    with pytest.raises(TransportError):
        await read(transport)
    assert len(server.seen) == 1


async def test_a_watch_that_starts_is_counted_under_its_status(
    server: Server, transport: Transport
) -> None:
    """W28: not as a request without an answer."""
    server.answers = [chunks(b"{}\n")]
    await read(transport)
    host = server.url.removeprefix("http://")
    name = "rest_client_requests_total"
    assert metric(name, code="200", method="GET", host=host) == 1
    assert metric(name, code="<error>", method="GET", host=host) == 0


async def test_a_line_over_the_limit_names_path_and_size(
    server: Server, transport: Transport
) -> None:
    """W5"""
    server.answers = [chunks(*[b"x" * 4_194_304] * 9)]
    with pytest.raises(LineTooLong, match=r"/api/v1/pods: a line of \d{8} bytes"):
        await read(transport)


@pytest.mark.parametrize(
    ("refusal", "type_"),
    [
        (answer(404, "404 page not found"), KindNotServed),
        (answer(403, status(403, "Forbidden")), Forbidden),
        (answer(503, "<html>" * 100_000), ServerUnavailable),
        (answer(401, status(401, "Unauthorized")), Unauthorized),
    ],
)
async def test_a_refused_stream_is_an_error_by_its_status(
    server: Server, transport: Transport, refusal: Any, type_: type[Exception]
) -> None:
    """W8, W10, R22"""
    server.answers = [refusal]
    with pytest.raises(type_):
        await read(transport)


async def test_a_429_is_not_waited_for(server: Server, transport: Transport) -> None:
    """R20: the watcher's own backoff counts it in."""
    server.answers = [answer(429, "", Retry_After="7")]
    with pytest.raises(TooManyRequests) as caught:
        await read(transport)
    assert caught.value.retry == After(7.0)
    assert len(server.seen) == 1


async def test_a_401_reloads_the_credentials_once(server: Server) -> None:
    """W20"""
    server.answers = [answer(401, ""), chunks(b"{}\n"), answer(401, "")]
    config = ClusterConfig(host=server.url, token=Tokens())
    transport = Transport(config, clock=FakeClock(), component="tests")
    assert await read(transport) == [b"{}"]
    with pytest.raises(Unauthorized):
        await read(transport)
    assert [seen.headers["Authorization"] for seen in server.seen] == [
        f"Bearer t{n}" for n in (1, 2, 2, 3)
    ]
    await transport.close()


async def test_open_watches_take_no_call_its_place(server: Server, transport: Transport) -> None:
    """W1"""
    server.answers = [chunks(b"{}\n", then_hang=True)]
    count, opened = 200, 0
    stop, all_open = asyncio.Event(), asyncio.Event()

    async def watch() -> None:
        nonlocal opened
        async with transport.stream(WATCH, sock_read=30.0) as lines:
            await anext(lines)
            opened += 1
            if opened == count:
                all_open.set()
            await stop.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(watch())
        async with asyncio.timeout(10):
            await all_open.wait()
            server.answers = [ok()]
            assert (await transport.request(GET)).status == 200
        stop.set()
    assert len({seen.connection for seen in server.seen}) == count + 1


async def test_an_unfinished_stream_leaves_no_connection(
    server: Server, transport: Transport
) -> None:
    """P13, W26: a thousand restarts leave as many sockets as one."""
    server.answers = [chunks(b"{}\n", then_hang=True)]
    for _ in range(1_000):
        async with transport.stream(WATCH, sock_read=5.0) as lines:
            assert await anext(lines) == b"{}"
    connector = transport._watches.connector
    assert connector is not None
    assert not connector._acquired
    assert not connector._conns
    assert len(os.listdir("/proc/self/fd")) < 100


async def test_a_cancelled_reader_ends_at_once(server: Server, transport: Transport) -> None:
    """R35"""
    server.answers = [chunks(b"{}\n", then_hang=True)]
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read(transport))
        await server.arrived.wait()
        await asyncio.sleep(0.01)
        reader.cancel()
    assert reader.cancelled()


async def test_a_line_of_30_mib_costs_its_size_not_its_square(
    server: Server, transport: Transport
) -> None:
    """W4"""
    piece = b"x" * 65_536
    server.answers = [chunks(*[piece] * 480, b"\n")]
    tracemalloc.start()
    (line,) = await read(transport)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(line) == 480 * 65_536
    assert peak < 4 * len(line)
