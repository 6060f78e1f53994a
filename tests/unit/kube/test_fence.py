from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web

from kaito.errors import NotLeader, TransportError
from kaito.kube.requests import Request
from kaito.kube.transport import IN_FLIGHT, Transport
from tests.fakes.clock import FakeClock, settle
from tests.unit.kube.server import Server, caught, cut, hang, ok, serving, until
from tests.unit.kube.test_transport import DELETE, GET, POST, PUT


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as started:
        yield started


def fenced(server: Server, fence: Callable[[], float]) -> Transport:
    return Transport(server.config, clock=FakeClock(), component="tests", fence=fence)


async def test_without_leadership_no_write_leaves_and_reads_do(server: Server) -> None:
    """E16, E17"""

    def lost() -> float:
        raise NotLeader("the lease has run out")

    server.answers = [ok()]
    transport = fenced(server, lost)
    for request in (POST, PUT, DELETE, Request("PATCH", "/x", body=b"{}")):
        with pytest.raises(NotLeader):
            await transport.request(request)
    await transport.request(GET)
    assert [seen.method for seen in server.seen] == ["GET"]
    await transport.close()


async def test_the_fence_is_asked_when_the_connection_is_in_hand(server: Server) -> None:
    """E16: leadership that ends while a call waits for its place stops that call."""
    leading, go = True, asyncio.Event()

    def fence() -> float:
        if not leading:
            raise NotLeader("the lease has run out")
        return 10.0

    async def wait(_: web.Request) -> web.Response:
        await go.wait()
        return web.Response()

    server.answers = [wait]
    transport = fenced(server, fence)
    async with asyncio.TaskGroup() as group:
        held = [group.create_task(transport.request(GET)) for _ in range(IN_FLIGHT)]
        await until(lambda: len(server.seen) == IN_FLIGHT)
        write = group.create_task(caught(transport.request(POST)))
        await settle()
        leading = False
        go.set()
    assert all(call.result().status == 200 for call in held)
    assert isinstance(write.result(), NotLeader)
    assert all(seen.method == "GET" for seen in server.seen)
    await transport.close()


async def test_a_write_ends_when_leadership_may(server: Server) -> None:
    """E16: the deadline ends there."""
    server.answers = [hang()]
    transport = fenced(server, lambda: 0.05)
    async with asyncio.timeout(5):
        error = await caught(transport.request(POST))
    assert isinstance(error, TransportError)
    assert error.may_be_done
    await transport.close()


async def test_leadership_lost_before_a_repeat_leaves_the_first_sending_unknown(
    server: Server,
) -> None:
    """A1, E16: NotLeader would say that nothing was sent."""

    def fence() -> float:
        if server.seen:
            raise NotLeader("the lease has run out")
        return 10.0

    server.answers = [cut()]
    transport = fenced(server, fence)
    error = await caught(transport.request(PUT))
    assert isinstance(error, TransportError)
    assert error.may_be_done
    assert len(server.seen) == 1
    await transport.close()


async def test_leadership_does_not_lengthen_a_deadline(server: Server) -> None:
    server.answers = [hang()]
    transport = fenced(server, lambda: 100.0)
    async with asyncio.timeout(5):
        assert isinstance(await caught(transport.request(POST, timeout=0.05)), TransportError)
    await transport.close()


async def test_a_machine_that_slept_before_the_bytes_went_out_ends_the_call_earlier(
    server: Server,
) -> None:
    """E16, E17: the loop's clock stood still meanwhile, so the limit set before is too late."""
    answers = iter((3600.0, 0.05))
    server.answers = [hang()]
    transport = fenced(server, lambda: next(answers))
    with pytest.raises(TransportError):
        await transport.request(POST, timeout=3600.0)
    await transport.close()
