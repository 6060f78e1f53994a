"""A reverse proxy on loopback that carries out a plan of faults, byte by byte.

Plain HTTP/1.1 towards the client, HTTP or TLS towards the real server. Each client connection has
one upstream connection of its own. Bodies are read whole from the client, and passed on piece by
piece, as chunks, from the server: a watch line by line. What no fault touches is not changed.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from kaito.kube.config import ClusterConfig, tls_context
from tests.fakes.fault_plan import (
    Call,
    Cut,
    Delay,
    Duplicate,
    ErrorLine,
    Fault,
    LostReply,
    Plan,
    Refuse,
    Script,
    Silence,
    Trickle,
    Unsent,
    error_line,
    refusal,
)

_MARKER: Final = re.compile(rb'"k8s\.io/initial-events-end"\s*:\s*"true"')
_HOP_BY_HOP: Final = {b"connection", b"transfer-encoding", b"content-length", b"keep-alive"}
_PIECE: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)  # linger for no time: close() sends RST


@dataclass(slots=True)
class Exchange:
    """One call as it went. ``status``: what the client got, 0 without an answer.

    ``has_error``: the server itself sent an ERROR event.
    """

    call: Call
    fault: Fault | None
    status: int = 0
    lines: int = 0
    has_error: bool = False

    def __str__(self) -> str:
        lines = f", {self.lines} lines" if self.call.verb == "WATCH" else ""
        return f"{self.call} -> {self.status}{lines}{f'; {self.fault}' if self.fault else ''}"


class FaultProxy:
    """``url``: where it listens. ``plan`` may be changed at any time; open streams keep theirs."""

    def __init__(self, upstream: ClusterConfig, plan: Plan) -> None:
        self.plan = plan
        self.url = ""
        self.trace: list[Exchange] = []
        self._upstream = urlsplit(upstream.host)
        self._tls = tls_context(upstream) if self._upstream.scheme == "https" else None
        self._numbers: Counter[tuple[str, str]] = Counter()

    @property
    def config(self) -> ClusterConfig:
        """How a client reaches the server through here."""
        return ClusterConfig(host=self.url)

    def seen(self, verb: str, path: str = "") -> list[Exchange]:
        """The calls of a verb whose path contains ``path``, in order."""
        return [e for e in self.trace if e.call.verb == verb and path in e.call.path]

    def story(self) -> str:
        """What was done to whom, a line each, for a failed test's message."""
        return "\n".join(str(e) for e in self.trace if e.fault is not None)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the server."""
        assert self._upstream.hostname
        return await asyncio.open_connection(
            self._upstream.hostname, self._upstream.port, ssl=self._tls
        )

    def begin(self, method: str, target: str) -> Exchange:
        """Note a call and decide its fate."""
        path, _, query = target.partition("?")
        asked = dict(parse_qsl(query))
        verb = "WATCH" if asked.pop("watch", "") in ("1", "true") else method
        self._numbers[verb, path] += 1
        call = Call(verb, path, asked, self._numbers[verb, path])
        exchange = Exchange(call, self.plan.decide(call))
        self.trace.append(exchange)
        return exchange


@asynccontextmanager
async def fault_proxy(
    upstream: ClusterConfig, plan: Plan | None = None
) -> AsyncIterator[FaultProxy]:
    """A proxy that listens while the context lasts. Without a plan: an empty script."""
    proxy = FaultProxy(upstream, plan or Script())
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(_Connection(proxy, reader, writer).serve())
        tasks.add(task)

    # No TaskGroup: it would wrap what a test raises, and a failed connection end the test's body.
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


class _Gone(Exception):
    """This client's connection is to end here."""


class _Connection:
    """One client connection, request after request."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._ahead = b""  # of the next request, read while looking for the connection's end
        self._upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def serve(self) -> None:
        try:
            while await self._one():
                pass
        except* (_Gone, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writer.transport.abort()
            self._drop_upstream()

    async def _one(self) -> bool:
        """One request and its reply. False: the client has closed."""
        try:
            head = self._ahead + await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        self._ahead = b""
        first, *lines = head[:-4].split(b"\r\n")
        headers = [line.partition(b":")[::2] for line in lines]
        length = next((int(v) for n, v in headers if n.lower() == b"content-length"), 0)
        body = await self._reader.readexactly(length)
        method, target, _ = first.decode().split(" ")
        exchange = self._proxy.begin(method, target)
        kept = [(n, v) for n, v in headers if n.lower() not in (b"host", b"connection")]
        request = _head(first, [(b"Host", b" upstream"), *kept]) + body
        # Someone who closes, or is stopped, must not leave a watch open up there.
        async with asyncio.TaskGroup() as group:
            leaving = group.create_task(self._until_gone())
            await self._answer(exchange, request)
            leaving.cancel()
        return True

    async def _until_gone(self) -> None:
        self._ahead += (ahead := await self._reader.read(1))
        if not ahead:
            raise _Gone

    async def _answer(self, exchange: Exchange, request: bytes) -> None:
        fault = exchange.fault
        match fault:
            case Unsent():
                raise _Gone
            case Refuse(status, retry_after):
                kind, body = refusal(fault)
                headers = [(b"Content-Type", b" " + kind.encode())]
                if retry_after is not None:
                    headers.append((b"Retry-After", b" %d" % retry_after))
                await self._begin_reply(exchange, b"HTTP/1.1 %d Made up" % status, headers)
                await self._send(body)
                await self._end()
                return
        reply = await self._ask(request)
        if isinstance(fault, LostReply):
            raise _Gone
        is_stream = exchange.call.verb == "WATCH" and reply.status == 200
        if isinstance(fault, Delay) and not is_stream:
            await asyncio.sleep(fault.seconds)
        await self._begin_reply(exchange, reply.first, reply.headers)
        if is_stream:
            await self._relay_lines(exchange, reply.body)
        else:
            await self._relay_body(exchange, reply.body)
        await self._end()
        if reply.is_last or not reply.body.is_read:
            self._drop_upstream()

    async def _ask(self, request: bytes) -> _Reply:
        if self._upstream is not None and self._upstream[0].at_eof():
            self._drop_upstream()
        if self._upstream is None:
            self._upstream = await self._proxy.connect()
        reader, writer = self._upstream
        writer.write(request)
        await writer.drain()
        return await _Reply.read(reader)

    async def _relay_body(self, exchange: Exchange, body: _Body) -> None:
        fault, sent = exchange.fault, 0
        while piece := await body.read():
            match fault:
                case Cut(after, how) if sent + len(piece) > after:
                    await self._send(piece[: after - sent])
                    await self._cut(piece[after - sent :], how)
                    return
                case Silence(after) if sent + len(piece) > after:
                    await self._send(piece[: after - sent])
                    await asyncio.Event().wait()
                case Trickle(count, pause):
                    await self._trickle(piece, count - sent, pause)
                case _:
                    await self._send(piece)
            sent += len(piece)

    async def _relay_lines(self, exchange: Exchange, body: _Body) -> None:
        """Until the server ends the stream, or the fault does."""
        fault = exchange.fault
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            delay = fault.seconds if isinstance(fault, Delay) else 0.0
            reading = group.create_task(_read_lines(body, queue, delay))
            await self._pass_lines(exchange, queue)
            reading.cancel()

    async def _pass_lines(
        self, exchange: Exchange, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        fault, now = exchange.fault, asyncio.get_running_loop().time
        is_streamed_list = "sendInitialEvents" in exchange.call.query
        is_counting = not is_streamed_list or getattr(fault, "initial", False)
        counted = sent = 0
        while True:
            match fault:
                case ErrorLine(after, code) if is_counting and counted == after:
                    await self._send(error_line(code))
                    return
                case Silence(after) if is_counting and counted == after:
                    await asyncio.Event().wait()
            due, line = await queue.get()
            if due > now():
                await asyncio.sleep(due - now())
            match fault:
                case _ if not line:
                    return
                case Cut(after, how) if is_counting and counted == after:
                    await self._cut(line, how)
                    return
                case Duplicate(every) if exchange.lines % every == 0:
                    await self._send(line)
                    await self._send(line)
                case Trickle(count, pause):
                    await self._trickle(line, count - sent, pause)
                case _:
                    await self._send(line)
            exchange.has_error = exchange.has_error or line.startswith(b'{"type":"ERROR"')
            sent += len(line)
            counted += is_counting
            exchange.lines += 1
            is_counting = is_counting or _MARKER.search(line) is not None

    # Bytes to the client ------------------------------------------------------------------------

    async def _begin_reply(
        self, exchange: Exchange, first: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        exchange.status = int(first.split(b" ")[1])
        kept = [(n, v) for n, v in headers if n.lower() not in _HOP_BY_HOP]
        self._writer.write(_head(first, [*kept, (b"Transfer-Encoding", b" chunked")]))
        await self._writer.drain()

    async def _send(self, data: bytes) -> None:
        if data:
            self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await self._writer.drain()

    async def _end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def _trickle(self, data: bytes, count: int, pause: float) -> None:
        count = max(0, min(count, len(data)))
        for place in range(count):
            await self._send(data[place : place + 1])
            await asyncio.sleep(pause)
        await self._send(data[count:])

    async def _cut(self, data: bytes, how: str) -> None:
        """Half of the data; unless it is to end properly, in a chunk that promised all of it."""
        half = data[: (len(data) + 1) // 2]
        if how == "end":
            await self._send(half)
            return
        self._writer.write(b"%x\r\n%s" % (len(data), half))
        await self._writer.drain()
        if how == "reset":
            client: socket.socket = self._writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _Gone

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream[1].transport.abort()
            self._upstream = None


class _Body:
    """What comes after a reply's head, whichever way its end is told."""

    def __init__(self, reader: asyncio.StreamReader, *, length: int | None, chunked: bool) -> None:
        self.is_read = False
        self._reader = reader
        self._is_chunked = chunked
        self._left = 0 if chunked else length  # None: until the connection ends

    async def read(self) -> bytes:
        """The next piece; empty: there is no more."""
        if self.is_read:
            return b""
        if self._is_chunked and self._left == 0:
            self._left = int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if self._left == 0:
                await self._reader.readuntil(b"\r\n")
        if self._left == 0:
            self.is_read = True
            return b""
        piece = await self._reader.read(min(_PIECE, self._left or _PIECE))
        if self._left is None:
            self.is_read = not piece
            return piece
        if not piece:
            raise asyncio.IncompleteReadError(b"", self._left)
        self._left -= len(piece)
        if self._is_chunked and self._left == 0:
            await self._reader.readexactly(2)
        return piece


@dataclass(frozen=True, slots=True)
class _Reply:
    """``is_last``: the server closes the connection after it."""

    first: bytes
    headers: list[tuple[bytes, bytes]]
    body: _Body
    is_last: bool

    @property
    def status(self) -> int:
        return int(self.first.split(b" ")[1])

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> _Reply:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].split(b"\r\n")
        headers = [line.partition(b":")[::2] for line in lines]
        named = {name.lower(): value.strip().lower() for name, value in headers}
        length = int(named[b"content-length"]) if b"content-length" in named else None
        chunked = named.get(b"transfer-encoding") == b"chunked"
        is_last = named.get(b"connection") == b"close" or (length is None and not chunked)
        return cls(first, headers, _Body(reader, length=length, chunked=chunked), is_last)


async def _read_lines(body: _Body, queue: asyncio.Queue[tuple[float, bytes]], delay: float) -> None:
    """Each line with the time at which it is due; an empty one at the end."""
    now, rest = asyncio.get_running_loop().time, b""
    while piece := await body.read():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            queue.put_nowait((now() + delay, line + b"\n"))
    if rest:
        queue.put_nowait((now() + delay, rest))
    queue.put_nowait((now() + delay, b""))


def _head(first: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"\r\n".join([first, *(b"%s:%s" % pair for pair in headers), b"", b""])
