"""E16: the election's fence is asked when the bytes go out, not only before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from kaito.clock import SystemClock
from kaito.controller.candidacy import LEASES
from kaito.errors import NotLeader, TransportError
from kaito.kube.client import KubeClient, connect
from kaito.kube.config import ClusterConfig

ANSWER = b"HTTP/1.1 201 Created\r\nContent-Length: 41\r\n\r\n" + (
    b'{"metadata":{"name":"a","namespace":"b"}}'
)
MANIFEST = {"metadata": {"namespace": "b", "name": "a"}}


class Server:
    """Takes bytes, answers once ``answering`` is set."""

    def __init__(self) -> None:
        self.received = b""
        self.connected = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set()
        while chunk := await reader.read(65536):
            self.received += chunk
            await self.answering.wait()
            writer.write(ANSWER)
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    made = Server()
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    yield made, f"http://127.0.0.1:{port}"
    made.answering.set()
    listening.close()
    await listening.wait_closed()


async def client_of(url: str, fence: Callable[[], float]) -> KubeClient:
    return await connect(
        ClusterConfig(host=url), clock=SystemClock(), component="test", fence=fence
    )


async def test_a_lease_that_runs_out_in_the_last_turn_sends_nothing(
    server: tuple[Server, str],
) -> None:
    """E16: aiohttp writes head and body a turn after it was handed the connection."""
    asked = 0

    def fence() -> float:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise NotLeader("the lease ran out")
        return 10.0

    client = await client_of(server[1], fence)
    with pytest.raises(NotLeader):
        await client.create(LEASES, MANIFEST)
    await client.close()
    assert asked == 2
    assert server[0].received == b""


async def test_a_call_ends_when_the_lease_may(server: tuple[Server, str]) -> None:
    """E16: it does not wait for its own limit of 30 s."""
    server[0].answering.clear()
    client = await client_of(server[1], lambda: 0.1)
    async with asyncio.timeout(10):
        with pytest.raises(TransportError):
            await client.create(LEASES, MANIFEST)
    await client.close()
    assert server[0].received.startswith(b"POST ")
