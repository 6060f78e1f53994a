from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from kaito.controller.backoff import TokenBucket
from kaito.errors import TransportError
from kaito.kube.config import ClusterConfig
from kaito.kube.requests import Request
from kaito.kube.transport import IN_FLIGHT, Transport
from tests.fakes.clock import FakeClock, settle
from tests.unit.kube.server import Server, hang, ok, serving, until
from tests.unit.kube.test_transport import GET, POST, metric


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


@pytest.fixture
async def transport(server: Server) -> AsyncIterator[Transport]:
    made = Transport(server.config, clock=FakeClock(), component="tests")
    yield made
    await made.close()


async def test_a_call_that_hangs_ends_at_its_deadline(server: Server, transport: Transport) -> None:
    """W2, P12"""
    server.answers = [hang()]
    with pytest.raises(TransportError, match="timed out") as caught:
        await transport.request(POST, timeout=0.05)
    assert caught.value.may_be_done


async def test_a_refused_connection_was_not_sent(transport: Transport, server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = ClusterConfig(host=f"http://127.0.0.1:{free.getsockname()[1]}")
        lonely = Transport(nobody, clock=FakeClock(), component="tests")
        with pytest.raises(TransportError) as caught:
            await lonely.request(POST)
        await lonely.close()
    assert not caught.value.may_be_done


async def test_a_cancelled_call_closes_its_connection(server: Server, transport: Transport) -> None:
    """W26"""
    server.answers = [hang(), ok()]
    async with asyncio.TaskGroup() as group:
        call = group.create_task(transport.request(GET))
        await server.arrived.wait()
        call.cancel()
        await asyncio.sleep(0)
        connector = transport._calls.connector
        assert connector is not None
        assert not connector._acquired
        assert not connector._conns
    await transport.request(GET)
    first, second = server.seen
    assert first.connection != second.connection


async def test_at_most_64_calls_are_in_flight_and_the_others_wait(
    server: Server, transport: Transport
) -> None:
    """W1, W18"""
    running = most = 0
    go = asyncio.Event()

    async def count(_: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return web.Response()

    server.answers = [count]
    async with asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT + 10):
            group.create_task(transport.request(Request("GET", f"/{number}")))
        await until(lambda: running == IN_FLIGHT)
        await settle()
        assert len(server.seen) == IN_FLIGHT
        go.set()
    assert most == IN_FLIGHT
    later = [int(seen.path[1:]) for seen in server.seen[IN_FLIGHT:]]
    assert sorted(later) == list(range(IN_FLIGHT, IN_FLIGHT + 10))


async def test_who_came_first_is_served_first(server: Server, transport: Transport) -> None:
    """W18"""
    turns = asyncio.Semaphore(0)

    async def wait(_: web.Request) -> web.Response:
        await turns.acquire()
        return web.Response()

    server.answers = [wait]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT + 5):
            group.create_task(transport.request(Request("GET", f"/{number}")))
            await asyncio.sleep(0)
        for done in range(IN_FLIGHT + 5):
            await until(lambda done=done: len(server.seen) == min(IN_FLIGHT + done, IN_FLIGHT + 5))
            turns.release()
    later = [int(seen.path[1:]) for seen in server.seen[IN_FLIGHT:]]
    assert later == list(range(IN_FLIGHT, IN_FLIGHT + 5))


async def test_there_is_no_rate_limit_unless_one_is_given(
    server: Server, transport: Transport
) -> None:
    """W18: two hundred calls at once need no clock."""
    server.answers = [ok()]
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(200):
            group.create_task(transport.request(GET))


async def test_a_rate_limit_is_waited_for_without_holding_a_place(server: Server) -> None:
    """W18: and the wait is in the metric."""
    clock = FakeClock()
    bucket = TokenBucket(clock=clock, rate=1, burst=1)
    transport = Transport(server.config, clock=clock, component="tests", reserve=bucket.when)
    server.answers = [ok()]
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(transport.request(GET))
        for seen in (1, 2, 3):
            await until(lambda seen=seen: len(server.seen) == seen)
            await settle()
            assert len(server.seen) == seen
            assert transport._slots._value == IN_FLIGHT
            await clock.advance(1)
    host = server.url.removeprefix("http://")
    name = "rest_client_rate_limiter_duration_seconds_sum"
    assert metric(name, verb="GET", host=host) == 3.0
    await transport.close()


async def test_a_turn_beyond_the_deadline_is_a_transport_error(server: Server) -> None:
    """W2, W18: and nothing was sent."""
    config, clock = server.config, FakeClock()
    transport = Transport(config, clock=clock, component="tests", reserve=lambda: 60.0)
    with pytest.raises(TransportError) as caught:
        await transport.request(POST, timeout=0.05)
    assert not caught.value.may_be_done
    assert not server.seen
    await transport.close()
