"""``/healthz``, ``/readyz`` and ``/metrics``, served by threads of their own.

A stalled loop then answers 500 instead of nothing. Checks are called in those threads: they read
single attributes and never wait.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from kaito.errors import InvalidSettings

log = structlog.get_logger()

Check = Callable[[], str | None]
"""None: fine. Else the cause, shown to whoever asks the probe."""
Query = Mapping[str, list[str]]
Answer = tuple[int, str, bytes]
"""Status, content type, body."""
Route = Callable[[str, Query], Answer | None]

_HEALTH: Final = "--health-probe-bind-address (KAITO_HEALTH_PROBE_BIND_ADDRESS)"
_METRICS: Final = "--metrics-bind-address (KAITO_METRICS_BIND_ADDRESS)"
_TEXT: Final = "text/plain; charset=utf-8"
_REQUEST_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 3600.0
_FULL_SECONDS: Final = 0.1
"""Pause when no connection can be served (no file descriptors, no threads left)."""


@dataclass(eq=False, kw_only=True)
class Probes:
    """Two servers: health and metrics. An address is ``:8080`` or ``host:port``; ``0`` is off.

    ``health_port``, ``metrics_port``: what was bound; 0 while off.
    """

    health_address: str
    metrics_address: str

    def __post_init__(self) -> None:
        self._live: dict[str, Check] = {}
        self._ready: dict[str, Check] = {}
        self._servers: list[_Server] = []
        self.health_port = self.metrics_port = 0

    def add_liveness(self, name: str, check: Check) -> None:
        """Make ``/healthz`` depend on it: failing means that a restart would help."""
        self._live[name] = check

    def add_readiness(self, name: str, check: Check) -> None:
        """Make ``/readyz`` depend on it."""
        self._ready[name] = check

    def start(self) -> None:
        """Bind and serve.

        Raises:
            InvalidSettings: an address cannot be bound; names flag, variable and address.
        """
        try:
            self.health_port = self._serve(_HEALTH, self.health_address, self._health)
            self.metrics_port = self._serve(_METRICS, self.metrics_address, _metrics)
        except InvalidSettings:
            self.stop()
            raise

    def stop(self) -> None:
        """Free ports and threads."""
        while self._servers:
            self._servers.pop().end()
        self.health_port = self.metrics_port = 0

    def _serve(self, flag: str, address: str, route: Route) -> int:
        if address == "0":
            return 0
        self._servers.append(_Server(_listen(flag, address), route))
        return self._servers[-1].server_port

    def _health(self, path: str, query: Query) -> Answer | None:
        for root, checks in (("/healthz", self._live), ("/readyz", self._ready)):
            named = dict(checks) or {"ping": lambda: None}
            name = path.removeprefix(root + "/")
            if path == root:
                return _report(named, query.get("exclude", ()), "verbose" in query)
            if name in named:
                return _report({name: named[name]}, (), "verbose" in query)
        return None


class _Server(ThreadingHTTPServer):
    """One listening socket: a thread that accepts, and one for each request.

    So that a client that is slow to ask does not hide a stalled loop from the kubelet.
    """

    daemon_threads = True
    block_on_close = False  # a client that keeps its connection must not hold up the stop

    def __init__(self, listener: socket.socket, route: Route) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.route = listener, route
        self.server_port = listener.getsockname()[1]
        self._ended = threading.Event()
        name, poll = f"http-{self.server_port}", (_LOOK_SECONDS,)
        self._thread = threading.Thread(None, self.serve_forever, name, poll, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Free port and thread."""
        self._ended.set()
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which looks rarely by itself
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            self._ended.wait(_FULL_SECONDS)  # else a process without descriptors left would spin
            raise

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Log in place of printing: no thread, a client that hung up, a fault of ours."""
        err = sys.exception()
        say = log.debug if isinstance(err, OSError) else log.exception
        say("request failed", port=self.server_port, error=repr(err))


class _Handler(BaseHTTPRequestHandler):
    """GET to the server's route."""

    server: _Server
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        answer = self.server.route(url.path.rstrip("/"), query)
        status, content_type, body = answer or (404, _TEXT, b"not found\n")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come each few seconds."""


def _report(checks: Mapping[str, Check], excluded: Sequence[str], verbose: bool) -> Answer:
    causes = {name: _cause(name, checks[name]) for name in checks if name not in excluded}
    is_failed = any(cause is not None for cause in causes.values())
    lines = [
        *(f"[+]{name} excluded: ok" for name in checks if name in excluded),
        *(f"[-]{n} failed: {c}" if c is not None else f"[+]{n} ok" for n, c in causes.items()),
        *(f"warn: no check to exclude: {name}" for name in excluded if name not in checks),
        f"healthz check {'failed' if is_failed else 'passed'}\n",
    ]
    text = "\n".join(lines) if is_failed or verbose else "ok"
    return (500 if is_failed else 200), _TEXT, text.encode()


def _cause(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception:
        log.exception("check failed", check=name)
        return "reason withheld"


def _metrics(path: str, query: Query) -> Answer | None:  # noqa: ARG001 - a route
    return (200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY)) if path == "/metrics" else None


def _listen(flag: str, address: str) -> socket.socket:
    """Bind ``host:port``; without a host, on every address of both families."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InvalidSettings(f"{flag}: {address!r} is not of the form :8080, host:8080 or 0")
    where, both = (host, int(port)), not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    try:
        return socket.create_server(where, family=family, dualstack_ipv6=both)
    except OSError as err:
        raise InvalidSettings(
            f"{flag}: cannot listen on {address!r}: {err}; choose another address, or 0 for none"
        ) from err
