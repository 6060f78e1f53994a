"""How long calls, connections and watches may take, on a loop whose time is turned by hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiohttp import web

from kaito.errors import TransportError
from kaito.kube.config import ClusterConfig
from kaito.kube.transport import Transport
from tests.fakes.clock import FakeClock
from tests.unit.kube.server import hang, serving, until
from tests.unit.kube.test_stream import WATCH
from tests.unit.kube.test_transport import POST


class Loop(asyncio.SelectorEventLoop):
    """Its clock is ``ahead`` of the real one."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def on_own_loop(scenario: Callable[[Loop], Coroutine[Any, Any, None]]) -> None:
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(scenario(loop))


async def turn(loop: Loop, seconds: float) -> None:
    """Let the time pass, and what it ends end."""
    loop.ahead += seconds
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_call_has_30_seconds_unless_told_otherwise() -> None:
    """W2"""

    async def scenario(loop: Loop) -> None:
        async with serving() as server:
            server.answers = [hang()]
            transport = Transport(server.config, clock=FakeClock(), component="tests")
            call = loop.create_task(transport.request(POST))
            await server.arrived.wait()
            await turn(loop, 29.0)
            assert not call.done()
            await turn(loop, 1.0)
            assert call.done()
            with pytest.raises(TransportError, match="timed out"):
                await call
            await transport.close()

    on_own_loop(scenario)


def test_a_connection_has_10_seconds_to_be_made() -> None:
    """W2: its TLS handshake included, which this server never answers."""

    async def scenario(loop: Loop) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            config = ClusterConfig(
                host=f"https://127.0.0.1:{silent.getsockname()[1]}", verify=False
            )
            transport = Transport(config, clock=FakeClock(), component="tests")
            call = loop.create_task(transport.request(POST))
            connection, _ = await loop.sock_accept(silent)
            with connection:
                await turn(loop, 8.0)
                assert not call.done()
                await turn(loop, 3.0)  # aiohttp rounds up to a whole second
                assert call.done()
                with pytest.raises(TransportError, match="Connection timeout") as caught:
                    await call
            assert not caught.value.may_be_done
            await transport.close()

    on_own_loop(scenario)


def test_a_watch_may_last_for_ever() -> None:
    """W2: aiohttp's own total, 300 s, would cut it; its silence alone counts."""

    async def scenario(loop: Loop) -> None:
        more = asyncio.Event()

        async def feed(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"1\n")
            await more.wait()
            await response.write(b"2\n")
            return response

        async with serving() as server:
            server.answers = [feed]
            transport = Transport(server.config, clock=FakeClock(), component="tests")
            async with transport.stream(WATCH, sock_read=7_200.0) as lines:
                assert await anext(lines) == b"1"
                await turn(loop, 3_600.0)
                more.set()
                assert await anext(lines) == b"2"
            await until(lambda: not transport._watches.connector._acquired)  # type: ignore[union-attr]
            await transport.close()

    on_own_loop(scenario)
