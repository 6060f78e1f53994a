"""HTTP to one API server: two sessions, credentials, deadlines, repeats, the election's fence.

Any answer is a Reply; what it means is the client's business. The only aiohttp import of the room.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import ipaddress
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import structlog
from yarl import URL

from kaito import metrics
from kaito.clock import Clock
from kaito.errors import LineTooLong, NotLeader, TransportError
from kaito.kube import errors
from kaito.kube.config import ClusterConfig, Token
from kaito.kube.credentials import Credentials, Tls
from kaito.kube.lines import LINE_LIMIT, LineBuffer
from kaito.kube.replies import Reply
from kaito.kube.requests import Request

log = structlog.get_logger()

CALL_SECONDS: Final = 30.0
IN_FLIGHT: Final = 64

_CONNECT_SECONDS: Final = 10.0
_WATCH_START_SECONDS: Final = 30.0
_ERROR_BODY_SECONDS: Final = 5.0
_IDLE_CONNECTION_SECONDS: Final = 30.0
_WAITS_LIMIT: Final = 10  # client-go's
_INFLATE_ON_LOOP: Final = 65_536  # compressed bytes; above, a thread
_GZIP: Final = 31  # zlib's wbits for it
_WARNINGS_KEPT: Final = 1_000
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Transport:
    """Connections to one API server. Make it in the loop that uses it; ``close`` when done.

    ``component``: who we are in the User-Agent. ``fence``: raises NotLeader, or returns the
    seconds the caller's leadership still lasts. It is asked once a connection is in hand, last
    thing before the bytes of each mutating request, and the request ends when leadership may.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        clock: Clock,
        component: str,
        fence: Callable[[], float] | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._fence = fence
        self._host = urlsplit(config.host).netloc
        self._encoding = "identity" if _is_loopback(config.host) else "gzip"
        self._credentials = Credentials(config.token, clock) if config.token else None
        self._tls = Tls(config, clock) if config.host.startswith("https:") else None
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._warned: set[str] = set()
        agent = f"kaito/{_version()} {component}"
        # Watches apart: hundreds that stay open never take a call's place.
        self._calls = _session(agent, IN_FLIGHT, config.proxy)
        self._watches = _session(agent, 0, config.proxy)

    async def prepare(self) -> None:
        """Read certificates and token, so that a faulty setting shows before the first request.

        Raises:
            InvalidSettings: one of them cannot be used; names the file.
        """
        await self._tls_context()
        if self._credentials is not None:
            await self._credentials.current()

    async def close(self) -> None:
        """Close all connections."""
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
        may_repeat = request.repeatable or not request.is_mutating
        may_reload = self._credentials is not None
        rejected: Token | None = None
        may_be_done = False  # by a sending that got no answer, whatever the next one meets
        waits = 0
        while True:
            attempt = _Attempt(self._fence if request.is_mutating else None)
            try:
                token = await self._token(request, ends, rejected)
                rejected = None
                reply = await self._attempt(request, attempt, token, ends)
            except NotLeader as err:
                if not may_be_done:
                    raise
                raise _failure(str(request), err) from err
            except TransportError as err:
                may_be_done = err.may_be_done = may_be_done or attempt.is_sent
                if not may_repeat or attempt.is_answered or self._clock.monotonic() >= ends:
                    raise
                may_repeat = False
                self._count_repeat(request.method, attempt.code)
                continue
            reply = replace(reply, may_be_second=may_be_done)
            if reply.status == 401 and may_reload:
                may_reload = False
                rejected = token
            else:
                wait = errors.retry_after(reply)
                if (
                    wait is None
                    or waits == _WAITS_LIMIT
                    or self._clock.monotonic() + wait >= ends
                    or errors.is_version_too_large(reply)
                ):
                    return reply
                waits += 1
                await self._clock.sleep(wait)
            self._count_repeat(request.method, attempt.code)

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
        ends = self._clock.monotonic() + _WATCH_START_SECONDS
        token = await self._token(request, ends)
        response = await self._start_stream(request, token, sock_read, ends)
        if response.status == 401 and self._credentials is not None:
            response.close()
            self._count_repeat("WATCH", "401")
            token = await self._token(request, ends, token)
            response = await self._start_stream(request, token, sock_read, ends)
        try:
            if response.status != 200:
                reply = Reply(response.status, response.headers, await _error_body(response))
                raise errors.error_for(reply, what=f"watch {request.path}")
            yield _ResponseLines(response, request)
        finally:
            response.close()

    async def _attempt(
        self, request: Request, attempt: _Attempt, token: Token | None, ends: float
    ) -> Reply:
        """Send once. Waits for its place among the calls, first come, first served."""
        method, arrived = request.method, self._clock.monotonic()
        with self._measured(request, method, attempt):
            async with self._until(ends) as attempt.deadline, self._slots:
                waited = self._clock.monotonic() - arrived
                metrics.REST_LIMITER_SECONDS.labels(method, self._host).observe(waited)
                async with self._calls.request(
                    method,
                    self._url(request),
                    data=request.body,
                    headers=self._headers(request, token, self._encoding),
                    middlewares=(attempt.send_once,),
                    timeout=aiohttp.ClientTimeout(connect=_CONNECT_SECONDS),
                    ssl=await self._tls_context(),
                    server_hostname=self._config.server_name,
                    allow_redirects=False,  # would carry the token to wherever it points
                ) as response:
                    self._observe(response, attempt)
                    body = await _body(response)
        metrics.REST_REQUEST_BYTES.labels(method, self._host).observe(len(request.body or b""))
        metrics.REST_RESPONSE_BYTES.labels(method, self._host).observe(len(body))
        return Reply(response.status, response.headers, body)

    async def _start_stream(
        self, request: Request, token: Token | None, sock_read: float, ends: float
    ) -> aiohttp.ClientResponse:
        attempt = _Attempt(None)
        with self._measured(request, "WATCH", attempt):
            async with self._until(ends):
                response = await self._watches.get(
                    self._url(request),
                    headers=self._headers(request, token, "identity"),
                    middlewares=(attempt.send_once,),
                    timeout=aiohttp.ClientTimeout(connect=_CONNECT_SECONDS, sock_read=sock_read),
                    ssl=await self._tls_context(),
                    server_hostname=self._config.server_name,
                    allow_redirects=False,
                )
            self._observe(response, attempt)
        return response

    @contextmanager
    def _measured(self, request: Request, verb: str, attempt: _Attempt) -> Iterator[None]:
        """Count the attempt; what fails in it is a TransportError."""
        started = self._clock.monotonic()
        try:
            yield
        except (aiohttp.ClientError, TimeoutError, OSError, zlib.error) as err:
            raise _failure(str(request), err) from err
        finally:
            spent = self._clock.monotonic() - started
            metrics.REST_REQUESTS.labels(attempt.code, request.method, self._host).inc()
            metrics.REST_SECONDS.labels(verb, self._host).observe(spent)

    async def _tls_context(self) -> ssl.SSLContext | bool:
        return True if self._tls is None else await self._tls.context()

    async def _token(
        self, request: Request, ends: float, rejected: Token | None = None
    ) -> Token | None:
        """The token to send; another than ``rejected`` if there is one."""
        if self._credentials is None:
            return None
        try:
            async with self._until(ends):
                if rejected is None:
                    return await self._credentials.current()
                return await self._credentials.replace(rejected)
        except TimeoutError as err:
            raise _failure(f"{request}: no credentials", err) from err

    def _until(self, ends: float) -> asyncio.Timeout:
        return asyncio.timeout(max(0.0, ends - self._clock.monotonic()))

    def _url(self, request: Request) -> URL:
        query = f"?{urlencode(request.query)}" if request.query else ""
        return URL(f"{self._config.host}{request.path}{query}", encoded=True)

    def _headers(self, request: Request, token: Token | None, encoding: str) -> Mapping[str, str]:
        headers = {"Accept": request.accept}
        if token is not None:
            headers["Authorization"] = token.authorization
        if not request.is_mutating:
            headers["Accept-Encoding"] = encoding
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        return headers

    def _observe(self, response: aiohttp.ClientResponse, attempt: _Attempt) -> None:
        """What the first bytes of an answer tell: the status, the server's time, warnings."""
        attempt.code = str(response.status)
        observe_date = getattr(self._clock, "observe_server_date", None)
        date = errors.parse_date(response.headers.get("Date", ""))
        if observe_date is not None and date is not None:
            observe_date(date)
        for text in response.headers.getall("Warning", ()):
            if text not in self._warned and len(self._warned) < _WARNINGS_KEPT:
                self._warned.add(text)
                log.warning("api server warns", text=text, path=response.url.path)

    def _count_repeat(self, verb: str, code: str) -> None:
        metrics.REST_RETRIES.labels(code, verb, self._host).inc()


class _Attempt:
    """One sending of a request: what was reached, and what must hold before its bytes go.

    ``code``: for metrics, the answer's status. ``deadline``: the fence may bring it forward.
    """

    def __init__(self, fence: Callable[[], float] | None) -> None:
        self.code = "<error>"
        self.is_sent = False
        self.deadline: asyncio.Timeout | None = None
        self._fence = fence
        self._is_started = False

    @property
    def is_answered(self) -> bool:
        return self.code != "<error>"

    async def send_once(
        self,
        request: aiohttp.ClientRequest,
        handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
    ) -> aiohttp.ClientResponse:
        """Middleware: refuses aiohttp's own second sending.

        It repeats GET, PUT and DELETE when a kept connection closes under them, whatever they
        say (facts W16); which requests may go twice is ours to decide.
        """
        if self._is_started:
            raise aiohttp.ServerDisconnectedError("kept connection closed under the request")
        self._is_started = True
        assert isinstance(request, _Request)
        request.before_bytes = self._before_bytes
        return await handler(request)

    def _before_bytes(self) -> None:
        if self._fence is not None and self.deadline is not None:
            ends = asyncio.get_running_loop().time() + self._fence()
            self.deadline.reschedule(min(ends, self.deadline.when() or ends))
        self.is_sent = True


class _Request(aiohttp.ClientRequest):
    """Asks once more when its connection is in hand."""

    before_bytes: Callable[[], None]

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        self.before_bytes()
        return await super().send(conn)


class _ResponseLines:
    """The iterator of a stream. No async generator: nothing of it is left to close."""

    def __init__(self, response: aiohttp.ClientResponse, request: Request) -> None:
        self._response = response
        self._what = f"watch {request.path}"
        self._buffer = LineBuffer()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._buffer.lines:
            try:
                chunk = await self._response.content.readany()
            except (aiohttp.ClientError, TimeoutError, OSError) as err:
                raise _failure(self._what, err) from err
            if not chunk:
                raise StopAsyncIteration
            if (size := self._buffer.feed(chunk)) > LINE_LIMIT:
                raise LineTooLong(f"{self._what}: a line of {size} bytes or more")
        return self._buffer.lines.popleft()


async def _body(response: aiohttp.ClientResponse) -> bytes:
    if response.status >= 400:
        return await _error_body(response)
    data = await response.read()
    if response.headers.get("Content-Encoding") != "gzip":
        return data
    if len(data) <= _INFLATE_ON_LOOP:
        return zlib.decompress(data, wbits=_GZIP)
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


def _failure(what: str, err: BaseException) -> TransportError:
    return TransportError(f"{what}: {str(err) or 'timed out'} ({type(err).__name__})")


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


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _version() -> str:
    try:
        return importlib.metadata.version("kaito")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "dev"
