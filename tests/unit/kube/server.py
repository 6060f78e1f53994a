"""A web server on loopback that answers as the test says, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from kaito.kube.config import ClusterConfig

_number = itertools.count()
Answer = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    connection: int  # the client's port


class Server:
    """``answers``: taken one per request, the last for all that follow."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.seen: list[Seen] = []
        self.arrived = asyncio.Event()
        self.url = ""

    @property
    def config(self) -> ClusterConfig:
        return ClusterConfig(host=self.url)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        self.seen.append(
            Seen(
                request.method,
                request.raw_path.partition("?")[0],
                dict(request.query),
                dict(request.headers),
                await request.read(),
                transport.get_extra_info("peername")[1],
            )
        )
        self.arrived.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer if isinstance(answer, web.StreamResponse) else await answer(request)


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    handler = web.Server(server.handle, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(handler, shutdown_timeout=0.01)
    await runner.setup()
    # Not all on one address: ports come back, and metrics are kept by address and port. The
    # certificates of tests name this one.
    address = "127.0.0.1" if tls else f"127.0.1.{next(_number) % 250 + 1}"
    site = web.TCPSite(runner, address, 0, ssl_context=tls)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]
    server.url = f"{'https' if tls else 'http'}://{address}:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


def ok(body: Any = None, **headers: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    return answer(200, {} if body is None else body, **headers)


def answer(
    status: int, body: Any = "", **headers: str
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Text, bytes or JSON. Header names are written with underscores."""

    async def handler(_: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes | str):
            raw = body if isinstance(body, bytes) else body.encode()
            named.setdefault("Content-Type", "text/plain")
            return web.Response(status=status, body=raw, headers=named)
        return web.json_response(body, status=status, headers=named, dumps=compact)

    return handler


def status(code: int, reason: str = "", **fields: Any) -> dict[str, Any]:
    """A metav1.Status."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        **({"reason": reason} if reason else {}),
        "code": code,
        **fields,
    }


def cut(sent: bytes = b"") -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Reset the connection, after these raw bytes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.write(sent)
        await asyncio.sleep(0.01 if sent else 0)
        request.transport.abort()
        return web.Response()

    return handler


def hang() -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handler(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    return handler


def chunks(*parts: bytes, then_hang: bool = False, then_cut: bool = False) -> Any:
    """A stream of exactly these chunks."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        if then_hang:
            await asyncio.Event().wait()
        if then_cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


def compact(body: Any) -> str:
    """As the API server writes it."""
    return json.dumps(body, separators=(",", ":"))


def json_of(seen: Seen) -> Any:
    return json.loads(seen.body)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - it is the other end of a socket
            await asyncio.sleep(0.001)


async def caught(call: Any) -> BaseException:
    try:
        await call
    except Exception as err:
        return err
    raise AssertionError("no error")
