"""HTTP to one API server: two sessions, credentials, deadlines, repeats, the election's fence.

Any answer is a Reply; what it means is the client's business. The only aiohttp import of the room.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.metadata
import re
import socket
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import structlog
from yarl import URL

from kaito import metrics
from kaito.clock import Clock
from kaito.errors import LineTooLong, NotLeader, TransportError
from kaito.kube import errors, lines
from kaito.kube.config import ClusterConfig
from kaito.kube.credentials import Credentials, Tls
from kaito.kube.replies import Reply
from kaito.kube.requests import Request
from kaito.kube.tokens import Token

log = structlog.get_logger()

CALL_SECONDS: Final = 30.0
IN_FLIGHT: Final = 64

_CONNECT_SECONDS: Final = 10.0
_ERROR_BODY_SECONDS: Final = 5.0
_IDLE_CONNECTION_SECONDS: Final = 30.0
_WAITS_LIMIT: Final = 10  # client-go's
_JOINED_ON_LOOP: Final = 64  # pieces as they come from the socket, some 64 KB each
_GZIP: Final = 31  # zlib's wbits for it
_WARNINGS_KEPT: Final = 1_000
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_NO_ANSWER: Final = "<error>"
_PLAIN: Final = "identity"
_LOOPBACK: Final = re.compile(r"localhost|127\.[\d.]+|::1")

Fence = Callable[[], float]
_query_string = functools.lru_cache(maxsize=256)(urlencode)


class Transport:
    """Connections to one API server. Make it in the loop that uses it; ``close`` when done.

    ``component``: who we are in the User-Agent. ``fence``: raises NotLeader, or returns the
    seconds the caller's leadership still lasts. It is asked once a connection is in hand, last
    thing before the bytes of each mutating request, and the request ends when leadership may.
    ``reserve``: seconds a call must wait for its turn by a rate limit; there is none by default.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        clock: Clock,
        component: str,
        fence: Fence | None = None,
        reserve: Callable[[], float] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._fence = fence
        self._reserve = reserve
        server = urlsplit(config.host)
        self._path = server.path
        self._url = functools.partial(
            URL.build, scheme=server.scheme, authority=server.netloc, encoded=True
        )
        self._encoding = _PLAIN if _LOOPBACK.fullmatch(server.hostname or "") else "gzip"
        self._credentials = Credentials(config.token, clock)
        self._tls = Tls(config, clock)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._meter = functools.cache(functools.partial(_Meter, host=server.netloc))
        self._warned: set[str] = set()
        self._date = ""
        agent = f"kaito/{importlib.metadata.version('kaito')} {component}"
        # Watches apart: hundreds that stay open never take a call's place.
        self._calls = _session(agent, IN_FLIGHT, config.proxy)
        self._watches = _session(agent, 0, config.proxy)

    async def prepare(self) -> None:
        """Read certificates and token, so that a faulty setting shows before the first request.

        Raises:
            InvalidSettings: one of them cannot be used; names the file.
        """
        token = await self._credentials.current()
        await self._tls.context(token.certificate)

    async def close(self) -> None:
        """Close all connections."""
        await self._credentials.close()
        await self._calls.close()
        await self._watches.close()

    async def request(self, request: Request, *, timeout: float = CALL_SECONDS) -> Reply:
        """One call and its answer, within ``timeout`` seconds; tokens, waits, repeats included.

        Repeated: once with new credentials after a 401; up to ten times where the server says
        when (Retry-After); once after a failure before any byte of the answer, if repeatable.

        Raises:
            TransportError: no answer, to one sending at least.
            NotLeader: the fence refused; nothing was sent.
        """
        ends = self._clock.monotonic() + timeout
        call = _Call(request, self._meter(request.method, request.method), self._clock, self._fence)
        may_repeat = request.repeatable or not request.is_mutating
        waits = 0
        while True:
            try:
                reply = await self._send(call, ends)
            except TransportError:
                if not may_repeat or call.code != _NO_ANSWER or self._clock.monotonic() >= ends:
                    raise
                may_repeat = False
            else:
                if reply.status == 401 and self._config.token and call.rejected is None:
                    call.rejected = call.token
                else:
                    wait = errors.retry_after(reply)
                    left = ends - self._clock.monotonic()
                    if wait is None or wait >= left or waits == _WAITS_LIMIT:
                        return reply
                    waits += 1
                    await self._clock.sleep(wait)
            call.meter.repeats(call.code).inc()

    @asynccontextmanager
    async def stream(
        self, request: Request, *, sock_read: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """A watch's complete lines, without newline, while the context lasts.

        The iterator ends when the server ends the stream; an open last line is dropped then.
        ``sock_read``: seconds of silence that count as a cut.

        Raises:
            ApiError: the answer is not 200; by type, as ``errors.error_for`` says.
            TransportError: no answer; from the iterator: the stream was cut.
            LineTooLong: from the iterator, over 32 MiB without a newline.
        """
        ends = self._clock.monotonic() + CALL_SECONDS
        call = _Call(request, self._meter("WATCH", "GET"), self._clock, self._fence)
        response = await self._start(call, ends, sock_read)
        if response.status == 401 and self._config.token:
            response.close()
            call.meter.repeats(call.code).inc()
            call.rejected = call.token
            response = await self._start(call, ends, sock_read)
        try:
            if response.status != 200:
                reply = Reply(response.status, response.headers, await _error_body(response))
                raise errors.error_for(reply, what=f"watch {request.path}")
            yield _ResponseLines(response, request)
        finally:
            response.close()

    async def _send(self, call: _Call, ends: float) -> Reply:
        """Send once. Waits for its place among the calls, first come, first served."""
        with call:
            async with call.until(ends):
                if self._reserve is not None and (turn := self._reserve()) > 0:
                    await self._clock.sleep(turn)
                async with self._slots:
                    call.meter.waiting(self._clock.monotonic() - call.started)
                    async with await self._open(call) as response:
                        body = await _body(response)
        call.meter.sent(len(call.request.body))
        call.meter.received(len(body))
        return Reply(response.status, response.headers, body, call.is_in_doubt)

    async def _start(self, call: _Call, ends: float, sock_read: float) -> aiohttp.ClientResponse:
        with call:
            async with call.until(ends):
                return await self._open(call, sock_read)

    async def _open(self, call: _Call, sock_read: float | None = None) -> aiohttp.ClientResponse:
        """The answer once it begins. ``sock_read``: of a watch, whose lines are never packed."""
        request = call.request
        call.token = token = await self._credentials.current(call.rejected)
        headers = {"Accept": request.accept}
        if token.authorization:
            headers["Authorization"] = token.authorization
        if request.is_mutating:
            headers["Content-Type"] = request.content_type
        else:
            headers["Accept-Encoding"] = self._encoding if sock_read is None else _PLAIN
        session = self._calls if sock_read is None else self._watches
        query = _query_string(request.query) if request.query else ""
        response = await session.request(
            request.method,
            self._url(path=self._path + request.path, query_string=query),
            # Empty rather than none: ``write_bytes`` is called for bodies alone.
            data=request.body if request.is_mutating else None,
            headers=headers,
            timeout=_timeouts(sock_read),
            ssl=await self._tls.context(token.certificate),
            server_hostname=self._config.server_name,
            allow_redirects=False,  # would carry the token to wherever it points
            middlewares=(call,),
        )
        call.code = str(response.status)
        self._observe(response)
        return response

    def _observe(self, response: aiohttp.ClientResponse) -> None:
        """What the head of any answer tells: the server's time, and its warnings."""
        if (text := response.headers.get("Date", "")) != self._date:
            self._date = text
            observe_date = getattr(self._clock, "observe_server_date", None)
            if observe_date is not None and (date := errors.parse_date(text)) is not None:
                observe_date(date)
        for text in response.headers.getall("Warning", ()):
            if text not in self._warned and len(self._warned) < _WARNINGS_KEPT:
                self._warned.add(text)
                log.warning("api server warns", text=text, path=response.url.path)


class _Meter:
    """What is counted of the requests of one verb. Looked up once: labels() costs a microsecond."""

    def __init__(self, verb: str, method: str, host: str) -> None:
        self.seconds = metrics.REST_SECONDS.labels(verb, host).observe
        self.waiting = metrics.REST_LIMITER_SECONDS.labels(verb, host).observe
        self.sent = metrics.REST_REQUEST_BYTES.labels(verb, host).observe
        self.received = metrics.REST_RESPONSE_BYTES.labels(verb, host).observe
        answers, repeats = metrics.REST_REQUESTS, metrics.REST_RETRIES
        self.answers = functools.cache(lambda code: answers.labels(code, method, host))
        self.repeats = functools.cache(lambda code: repeats.labels(code, verb, host))


class _Call:
    """A request and its sendings so far.

    As a context: one sending, which is counted, and whose failure becomes a TransportError.
    ``code``: for metrics, the answer's status. ``is_in_doubt``: of a mutating request, a sending
    that got no answer may have been carried out, whatever the next one meets.
    """

    def __init__(self, request: Request, meter: _Meter, clock: Clock, fence: Fence | None) -> None:
        self.request = request
        self.meter = meter
        self.is_in_doubt = False
        self.token: Token | None = None
        self.rejected: Token | None = None
        self._clock = clock
        self._fence = fence if request.is_mutating else None

    def __enter__(self) -> None:
        self.code = _NO_ANSWER
        self.started = self._clock.monotonic()
        self._was_in_doubt = self.is_in_doubt

    def __exit__(self, _: object, err: object, __: object) -> None:
        self.meter.answers(self.code).inc()
        self.meter.seconds(self._clock.monotonic() - self.started)
        if err is None:
            if not self.code.startswith("5"):  # it may have been carried out all the same
                self.is_in_doubt = self._was_in_doubt
        elif isinstance(err, aiohttp.ClientError | OSError | zlib.error):  # OSError: timeouts too
            missing = ": no credentials" if self.token is self.rejected else ""
            raise _failure(f"{self.request}{missing}", err, may_be_done=self.is_in_doubt) from err
        elif isinstance(err, NotLeader) and self.is_in_doubt:  # it would say that nothing was sent
            raise _failure(self.request, err) from err

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """As a middleware of aiohttp's, which knows the request that goes out.

        By itself aiohttp sends GET, PUT and DELETE again when a kept connection closes under them
        (facts W16). Which requests may go twice is ours to decide, so it never sees that error.
        """
        assert isinstance(request, _Request)
        request.call = self
        try:
            return await handler(request)
        except aiohttp.ClientConnectionError as err:
            raise _failure(self.request, err, may_be_done=self.is_in_doubt) from err

    def until(self, ends: float) -> asyncio.Timeout:
        """The limit of one sending: not longer than leadership is sure to last."""
        left = max(0.0, ends - self._clock.monotonic())
        self._limit = asyncio.timeout(left if self._fence is None else min(left, self._fence()))
        return self._limit

    def before_bytes(self) -> None:
        """With the connection in hand; what raises here keeps the request from going out."""
        if self._fence is not None:
            # The loop's clock stood still if the machine did since the limit was set.
            ends = asyncio.get_running_loop().time() + self._fence()
            if not self._limit.expired():
                self._limit.reschedule(min(ends, self._limit.when() or ends))
        self.is_in_doubt = True


class _Request(aiohttp.ClientRequest):
    call: _Call

    async def write_bytes(
        self,
        writer: aiohttp.abc.AbstractStreamWriter,
        conn: aiohttp.connector.Connection,
        content_length: int | None = None,
    ) -> None:
        # Head and body go out here, in a task that aiohttp began with the connection in hand.
        try:
            self.call.before_bytes()
        except NotLeader as err:
            assert conn.protocol is not None
            conn.protocol.set_exception(err)
        else:
            await super().write_bytes(writer, conn, content_length)


class _ResponseLines:
    """The iterator of a stream. No async generator: nothing of it is left to close."""

    def __init__(self, response: aiohttp.ClientResponse, request: Request) -> None:
        self._read = response.content.readchunk
        self._what = f"watch {request.path}"
        self._buffer = lines.LineBuffer()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        whole = self._buffer.lines
        while not whole:
            try:
                # An HTTP chunk is one event: taken so, it need not be joined and split again.
                chunk, is_end = await self._read()
            except (aiohttp.ClientError, TimeoutError, OSError) as err:
                raise _failure(self._what, err) from err
            if not chunk and not is_end:
                raise StopAsyncIteration
            if (size := self._buffer.feed(chunk)) > lines.LINE_LIMIT:
                raise LineTooLong(f"{self._what}: a line of {size} bytes or more")
        return whole.popleft()


async def _body(response: aiohttp.ClientResponse) -> bytes:
    if response.status >= 400:
        return await _error_body(response)
    pieces = [piece async for piece in response.content.iter_any()]
    is_short = len(pieces) < _JOINED_ON_LOOP  # joining 64 MB takes 50 ms, though not the GIL
    data = b"".join(pieces) if is_short else await asyncio.to_thread(b"".join, pieces)
    if response.headers.get("Content-Encoding") != "gzip":
        return data
    # The server packs what is over 128 KiB only; zlib leaves the loop its turns meanwhile.
    return await asyncio.to_thread(zlib.decompress, data, wbits=_GZIP)


async def _error_body(response: aiohttp.ClientResponse) -> bytes:
    """As much of it as there is, up to the limit: the status alone is answer enough."""
    data = b""
    with suppress(aiohttp.ClientError, TimeoutError):
        async with asyncio.timeout(_ERROR_BODY_SECONDS):
            while chunk := await response.content.read(errors.BODY_LIMIT - len(data)):
                data += chunk
    if response.headers.get("Content-Encoding") == "gzip":
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=_GZIP).decompress(data, errors.BODY_LIMIT)
    return data


def _failure(what: object, err: BaseException, *, may_be_done: bool = True) -> TransportError:
    failure = TransportError(f"{what}: {str(err) or 'timed out'} ({type(err).__name__})")
    failure.may_be_done = may_be_done
    return failure


def _timeouts(sock_read: float | None) -> aiohttp.ClientTimeout:
    """What aiohttp watches over: the total of a call is ours, and a watch has none."""
    return aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=sock_read)


def _session(agent: str, limit: int, proxy: str | None) -> aiohttp.ClientSession:
    """``limit``: connections at most, 0 for no limit."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=limit, keepalive_timeout=_IDLE_CONNECTION_SECONDS, socket_factory=_socket
        ),
        headers={"User-Agent": agent},
        skip_auto_headers=("Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
        request_class=_Request,
        auto_decompress=False,  # it would inflate on the loop
    )


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setblocking(False)
    for level, option, value in _SOCKET_OPTIONS:
        made.setsockopt(level, option, value)
    return made
